"""ShuffleNet for small images (Zhang et al., 2018): grouped 1 x 1 convolutions with shuffled channels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.models import layers
from distill.models.network import Network
from distill.types import Output

STEM = 24


class Unit(nn.Module):
    """A shuffle unit that ends before its last ReLU.

    Unlike in the paper, the depthwise convolution is rectified too (so are the public code bases').
    """

    def __init__(self, inputs: int, outputs: int, groups: int, *, entry: bool) -> None:
        super().__init__()
        self.entry = entry
        self.groups = 1 if inputs == STEM else groups  # the stem is too narrow to be grouped
        added = outputs - inputs if entry else outputs
        inner = added // 4
        self.conv1 = layers.conv1x1(inputs, inner, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = layers.conv3x3(inner, inner, stride=2 if entry else 1, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = layers.conv1x1(inner, added, groups=groups)
        self.bn3 = nn.BatchNorm2d(added)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of branch and input; an entry unit halves the size and concatenates the pooled input instead."""
        branch: Tensor = F.relu(self.bn1(self.conv1(x)))
        if self.groups > 1:
            branch = layers.shuffle(branch, self.groups)
        branch = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(branch)))))
        if self.entry:
            return torch.cat([branch, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        return branch + x


class ShuffleNetV1(Network):
    """Three stages of shuffle units after a 1 x 1 stem.

    `stages` are the rectified stem and stage maps, `preacts` the maps before the last ReLU of each stage. Initialised
    as PyTorch does by default. No normalisation alone precedes the last ReLU: `norms` is empty.

    Args:
        widths: Channels of the three stages.
        units: Units of each, the one of stride 2 included.
        groups: Of the 1 x 1 convolutions.
        num_classes: Columns of the logits.

    Raises:
        UserError: On widths that the groups do not divide, or lists that are not three positive numbers.
    """

    def __init__(self, *, widths: Sequence[int], units: Sequence[int], groups: int, num_classes: int) -> None:
        super().__init__()
        layers.require_positive(widths=widths, units=units, groups=groups, num_classes=num_classes)
        layers.require_length(3, widths=widths, units=units)
        for inputs, width in zip([STEM, *widths], widths, strict=False):
            if width <= inputs or width % (4 * groups) or (width - inputs) % (4 * groups):
                raise UserError(
                    f"each width of ShuffleNet must exceed the one before ({STEM} at first), and itself and the "
                    f"difference be multiples of 4 x groups = {4 * groups}, not {list(widths)}"
                )
        self.conv1 = layers.conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(STEM, widths[0], units[0], groups)
        self.layer2 = self._stage(widths[0], widths[1], units[1], groups)
        self.layer3 = self._stage(widths[1], widths[2], units[2], groups)
        self.linear = nn.Linear(widths[2], num_classes)

    @staticmethod
    def _stage(inputs: int, width: int, units: int, groups: int) -> nn.Sequential:
        rest = (Unit(width, width, groups, entry=False) for _ in range(units - 1))
        return nn.Sequential(Unit(inputs, width, groups, entry=True), *rest)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def answer(self, x: Tensor) -> Output:
        stem = F.relu(self.bn1(self.conv1(x)))
        f1, p1 = layers.run_stage(self.layer1, stem)
        f2, p2 = layers.run_stage(self.layer2, f1)
        f3, p3 = layers.run_stage(self.layer3, f2)
        pooled = layers.pool(f3)
        return Output(self.classify(pooled), stages=(stem, f1, f2, f3), preacts=(p1, p2, p3), final=f3, pooled=pooled)
