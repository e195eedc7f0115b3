"""Wide residual networks (Zagoruyko and Komodakis, 2016), with pre-activation blocks."""

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.models import layers
from distill.models.network import Network
from distill.types import Output


class Unit(nn.Module):
    """A pre-activation block, whose first normalisation is run by the network: it is also a map that others read."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = layers.conv3x3(inputs, width, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = layers.conv3x3(width, width)
        self.convShortcut = None if inputs == width else layers.conv1x1(inputs, width, stride=stride)

    def forward(self, x: Tensor, normed: Tensor) -> Tensor:
        """Residual sum.

        Args:
            x: Raw sum of the block before, shape (batch, inputs, height, width).
            normed: `bn1(x)`, same shape.

        Returns:
            Shape (batch, width, height / stride, width / stride), neither normalised nor rectified.
        """
        active = F.relu(normed)
        branch: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return branch + (x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    """Units in a row, under the published key `layer`."""

    def __init__(self, inputs: int, width: int, stride: int, units: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(Unit(inputs, width, stride), *(Unit(width, width, 1) for _ in range(units - 1)))

    @property
    def first(self) -> Unit:
        """The unit whose `bn1` normalises the sum of the stage before."""
        return cast(Unit, self.layer[0])


class WideResNet(Network):
    """WRN-depth-factor without dropout.

    `stages` are the stem's convolution and the raw residual sums: neither normalised nor rectified. `preacts` are the
    sums after the normalisation that comes next, in the following stage or before the classifier; each
    normalisation runs once per forward. `final` is the last of them, rectified.

    Args:
        depth: Layers with weights, 6n + 4.
        widen_factor: Multiplies the widths 16, 32, 64 of the stages; the stem stays 16 wide.
        num_classes: Columns of the logits.

    Raises:
        UserError: On another depth, or sizes that are not positive.
    """

    def __init__(self, *, depth: int, widen_factor: int, num_classes: int) -> None:
        super().__init__()
        layers.require_positive(depth=depth, widen_factor=widen_factor, num_classes=num_classes)
        units, rest = divmod(depth - 4, 6)
        if rest or units < 1:
            raise UserError(f"the depth of a wide ResNet is 6n + 4 (10, 16, 22, ...), not {depth}")
        width = 16 * widen_factor
        self.conv1 = layers.conv3x3(3, 16)
        self.block1 = Stage(16, width, 1, units)
        self.block2 = Stage(width, 2 * width, 2, units)
        self.block3 = Stage(2 * width, 4 * width, 2, units)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, num_classes)
        layers.he_normal_(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return self.block2.first.bn1, self.block3.first.bn1, self.bn1

    def answer(self, x: Tensor) -> Output:
        x = self.conv1(x)
        stages: list[Tensor] = [x]
        preacts: list[Tensor] = []
        for stage in (self.block1, self.block2, self.block3):
            for unit in cast(Iterable[Unit], stage.layer):
                normed = unit.bn1(x)
                if len(preacts) < len(stages) - 1:  # a stage has ended, and this normalises its sum
                    preacts.append(normed)
                x = unit(x, normed)
            stages.append(x)
        preacts.append(self.bn1(x))
        final = F.relu(preacts[-1])
        pooled = layers.pool(final)
        return Output(self.classify(pooled), stages=tuple(stages), preacts=tuple(preacts), final=final, pooled=pooled)
