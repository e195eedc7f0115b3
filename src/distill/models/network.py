"""What every network offers: it normalises its own input and answers with `Output`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.types import Batch, Output, Shapes


class Network(nn.Module):
    """A classifier of images in [0, 1].

    Subclasses implement `answer`. Mean, standard deviation and input size belong to the network, not to the data,
    so that networks with different habits can look at the same batch; they are no part of its state_dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)
        self.input_size: int | None = None

    def normalise(self, *, mean: Sequence[float], std: Sequence[float], input_size: int | None) -> None:
        """Set how images are normalised, per channel of [0, 1], and resized (None: as they come)."""
        self.mean = self.mean.new_tensor(mean).view(1, 3, 1, 1)
        self.std = self.std.new_tensor(std).view(1, 3, 1, 1)
        self.input_size = input_size

    @property
    def published(self) -> nn.Module:
        """The module whose state_dict is the published format: an adapter's is that of what it adapts."""
        return self

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer."""
        raise NotImplementedError(f"{type(self).__name__} does not say which layer its classifier is")

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """The normalisation before each stage's last ReLU, stages 1 to n; () where there is none."""
        return ()

    def forward(self, images: Tensor) -> Output:
        """Answer to images in [0, 1], shape (batch, 3, height, width)."""
        if self.input_size is not None and images.shape[-1] != self.input_size:
            size = (self.input_size, self.input_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=images.shape[-1] > self.input_size)
        return self.answer((images - self.mean) / self.std)

    def ask(self, batch: Batch) -> Output:
        """Answer to the images of a batch; a network whose answers are kept knows some of them by their names."""
        output: Output = self(batch.images)
        return output

    def answer(self, x: Tensor) -> Output:
        """Answer to normalised images of the right size."""
        raise NotImplementedError

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits in float32: bf16 logits of norm 40 would be off by .1."""
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.classifier(pooled if pooled.dtype is torch.float64 else pooled.float())
        return logits

    @torch.no_grad()
    def shapes(self, size: int) -> Shapes:
        """Shapes of the answer to a square image, from a probe in eval mode that leaves no trace."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            probe: Output = self(torch.zeros(1, 3, size, size, device=self.mean.device))
        finally:
            for module, training in modes:
                module.training = training
        return Shapes(
            logits=probe.logits.shape[1],
            stages=tuple(_chw(f) for f in probe.stages),
            preacts=tuple(_chw(f) for f in probe.preacts),
            final=None if probe.final is None else _chw(probe.final),
            pooled=None if probe.pooled is None else probe.pooled.shape[1],
        )


class Standin(Network):
    """Stands for another network: answers as that does, and names its parts.

    Args:
        inner: The other network.
    """

    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner = inner

    @property
    def published(self) -> nn.Module:
        return self.inner.published

    @property
    def classifier(self) -> nn.Linear:
        return self.inner.classifier

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return self.inner.norms

    def forward(self, images: Tensor) -> Output:
        """The other's answer."""
        output: Output = self.inner(images)
        return output


def _chw(feature: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = feature.shape
    return channels, height, width
