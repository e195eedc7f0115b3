"""ShuffleNetV2 for small images (Ma et al., 2018): split channels, work on one half, shuffle."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.models import layers
from distill.models.network import Network
from distill.types import Output

STEM = 24


class BasicUnit(nn.Module):
    """Passes one half of the channels on and works on the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = layers.conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = layers.conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = layers.conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The half that is kept, and the other before its last ReLU; each (batch, width / 2, height, width)."""
        kept, branch = x.chunk(2, dim=1)
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(branch)))))
        return kept, self.bn3(self.conv3(branch))


class DownUnit(nn.Module):
    """Halves the size: two branches, both reading all channels."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = layers.conv3x3(inputs, inputs, stride=2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = layers.conv1x1(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = layers.conv1x1(inputs, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = layers.conv3x3(half, half, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = layers.conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The left half, rectified, and the right one before its last ReLU; each (batch, width / 2, ...)."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return left, self.bn5(self.conv5(right))


class ShuffleNetV2(Network):
    """Three stages of shuffle units after a 1 x 1 stem, and a 1 x 1 convolution before the pooling.

    `stages` are the rectified stem and stage maps. `preacts` join the two halves before the last ReLU and before the
    shuffle, as the public code bases do: their channels are in another order than those of `stages`. `final` is the
    last 1 x 1 convolution, rectified. Initialised as PyTorch does by default. No single normalisation precedes the
    last ReLU: `norms` is empty.

    Args:
        widths: Channels of the three stages.
        units: Units of each, the one of stride 2 included.
        last_width: Channels of the last convolution.
        num_classes: Columns of the logits.

    Raises:
        UserError: On an odd width, or lists that are not three positive numbers.
    """

    def __init__(self, *, widths: Sequence[int], units: Sequence[int], last_width: int, num_classes: int) -> None:
        super().__init__()
        layers.require_positive(widths=widths, units=units, last_width=last_width, num_classes=num_classes)
        layers.require_length(3, widths=widths, units=units)
        if any(width % 2 for width in widths):
            raise UserError(f"the widths of ShuffleNetV2 are split in halves and must be even, not {list(widths)}")
        self.conv1 = layers.conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(STEM, widths[0], units[0])
        self.layer2 = self._stage(widths[0], widths[1], units[1])
        self.layer3 = self._stage(widths[1], widths[2], units[2])
        self.conv2 = layers.conv1x1(widths[2], last_width)
        self.bn2 = nn.BatchNorm2d(last_width)
        self.linear = nn.Linear(last_width, num_classes)

    @staticmethod
    def _stage(inputs: int, width: int, units: int) -> nn.Sequential:
        return nn.Sequential(DownUnit(inputs, width), *(BasicUnit(width) for _ in range(units - 1)))

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def answer(self, x: Tensor) -> Output:
        x = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = [x], []
        for stage in (self.layer1, self.layer2, self.layer3):
            left = right = x
            for unit in stage:
                left, right = unit(x)
                x = layers.shuffle(torch.cat([left, F.relu(right)], dim=1), 2)
            stages.append(x)
            preacts.append(torch.cat([left, right], dim=1))
        final = F.relu(self.bn2(self.conv2(x)))
        pooled = layers.pool(final)
        return Output(self.classify(pooled), stages=tuple(stages), preacts=tuple(preacts), final=final, pooled=pooled)
