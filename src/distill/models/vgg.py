"""VGG with batch normalisation and a single linear layer, for small images (Simonyan and Zisserman, 2015)."""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models import layers
from distill.models.network import Network
from distill.types import Output


def _block(inputs: int, width: int, convolutions: int) -> nn.Sequential:
    """Convolutions with bias, each normalised and, but for the last, rectified."""
    modules: list[nn.Module] = []
    for _ in range(convolutions):
        modules += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*modules[:-1])


class CifarVGG(Network):
    """Five blocks of 3 x 3 convolutions, max-pooled between the first four; the last two work at the same size.

    Images of 64 px, and only these, are pooled between the last two as well, as in the public code bases. `stages` are
    the rectified maps of all five blocks (the first stands for the stem), `preacts` those of the last four before ReLU.

    Args:
        convolutions: Convolutions of each block.
        widths: Channels of each block.
        num_classes: Columns of the logits.

    Raises:
        UserError: Unless these are five positive numbers each.
    """

    def __init__(self, *, convolutions: Sequence[int], widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        layers.require_positive(convolutions=convolutions, widths=widths, num_classes=num_classes)
        layers.require_length(5, convolutions=convolutions, widths=widths)
        self.block0 = _block(3, widths[0], convolutions[0])
        self.block1 = _block(widths[0], widths[1], convolutions[1])
        self.block2 = _block(widths[1], widths[2], convolutions[2])
        self.block3 = _block(widths[2], widths[3], convolutions[3])
        self.block4 = _block(widths[3], widths[4], convolutions[4])
        head = nn.Linear(widths[4], num_classes)
        self._modules["classifier"] = head  # the published key; as an attribute the property below stands before it
        layers.he_normal_(self)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)

    @property
    def classifier(self) -> nn.Linear:
        return cast(nn.Linear, self._modules["classifier"])

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return tuple(block[-1] for block in (self.block1, self.block2, self.block3, self.block4))

    def answer(self, x: Tensor) -> Output:
        pools = (True, True, True, x.shape[-1] == 64)
        x = F.relu(self.block0(x))
        stages, preacts = [x], []
        for pool, block in zip(pools, (self.block1, self.block2, self.block3, self.block4), strict=True):
            preacts.append(block(F.max_pool2d(x, 2) if pool else x))
            x = F.relu(preacts[-1])
            stages.append(x)
        pooled = layers.pool(x)
        return Output(self.classify(pooled), stages=tuple(stages), preacts=tuple(preacts), final=x, pooled=pooled)
