"""The usual recipe: a float32 loop over PIL images, as users' repositories write it."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from distill.bench.loops import Learner, Loop, copies, optimizer_of
from distill.build import Node
from distill.data.order import balanced_split
from distill.data.resident import ResidentData
from distill.errors import UserError
from distill.models.network import Network
from distill.run.parts import Prepared
from distill.types import Batch

WORKERS, PREFETCH = 2, 2  # processes, and torch's own number of batches that each makes ahead

Sample = tuple[Tensor, int, int]


class Pictures(Dataset[Sample]):
    """Images in an array, each made a PIL image when it is asked for, as torchvision's CIFAR classes do.

    Args:
        images: uint8, shape (samples, height, width, 3).
        labels: Of each image.
        transform: From a PIL image to a tensor.
    """

    def __init__(self, images: Any, labels: list[int], transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: int) -> Sample:
        return self.transform(Image.fromarray(self.images[sample])), self.labels[sample], sample


def pictures(data: ResidentData) -> Pictures:
    """The training set with the transforms that stand in most repositories for this kind of data."""
    part, _ = data.read()
    if data.holdout:
        part = part.take(balanced_split(part.labels, data.holdout)[0])
    steps = [
        transforms.RandomCrop(data.size, padding=data.padding),
        *([transforms.RandomHorizontalFlip()] if data.flip else []),
        transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std),
    ]
    return Pictures(part.images.numpy(), part.labels.tolist(), transforms.Compose(steps))


class Usual(Loop):
    """The loop. Its images come normalised and its networks do not normalise again; it reads the loss at each step.

    What is set for the whole process holds here as well, and is more than many repositories do: denormals flushed,
    cudnn's search for the fastest kernels, torch's default of TF32 convolutions, pinned memory on a GPU.

    Args:
        prepared: The run; it takes copies of its networks and method, the teacher as it was built.
        optimizer: Node of the configuration; flags that choose an implementation are left to torch.

    Raises:
        UserError: If the images of the data set do not lie in memory.
    """

    def __init__(self, prepared: Prepared, optimizer: Node) -> None:
        data = prepared.data
        if not isinstance(data, ResidentData):
            raise UserError("The benchmark compares loaders of small images: choose data=cifar100 or digits.")
        parts = copies(prepared)
        for network in (parts.student, parts.teacher):
            if network is not None:
                cast(Any, network).to(memory_format=torch.contiguous_format)
                _take_normalised(network)
        node = {key: value for key, value in optimizer.items() if key not in ("foreach", "fused")}
        self.learner = Learner(parts, optimizer_of(node, parts), "32-true", prepared.device)
        with _without_advice():
            self.loader: DataLoader[Sample] = DataLoader(
                pictures(data),
                batch_size=data.batch_size,
                shuffle=True,
                num_workers=WORKERS,
                prefetch_factor=PREFETCH,
                pin_memory=prepared.device.type == "cuda",
                generator=torch.Generator(),  # else it draws from, and so moves, the process's own
            )
        self.iterator: Iterator[Any] | None = None
        start = time.perf_counter()
        self._drain()
        self.filling = time.perf_counter() - start  # more than the workers need to make as much again

    def _next(self) -> Any:
        if self.iterator is None:
            with _without_advice():
                self.iterator = iter(self.loader)
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = None
            return self._next()

    def _drain(self) -> None:
        for _ in range(WORKERS * PREFETCH):
            self._next()

    def begin(self) -> None:
        """Throw away what the workers made while others ran, which would come for nothing."""
        self._drain()

    def end(self) -> None:
        """Wait until the workers have made what they make ahead."""
        time.sleep(self.filling)

    def step(self) -> None:
        """A batch from the workers, and a step on it."""
        start = time.perf_counter()
        content = self._next()
        self.waiting += time.perf_counter() - start
        images, labels, index = (tensor.to(self.learner.device, non_blocking=True) for tensor in content)
        self.learner.learn(Batch(images, labels, index)).item()

    def close(self) -> None:
        """End the workers."""
        self.iterator = None


@contextmanager
def _without_advice() -> Iterator[None]:
    """On a small machine, torch advises fewer workers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def _take_normalised(network: Network) -> None:
    if network.input_size is None:
        cast(Any, network).forward = network.answer
    else:  # it still has to resize
        network.normalise(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), input_size=network.input_size)
