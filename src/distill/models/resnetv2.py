"""Residual networks with the four stages of the ImageNet ones but a stem for small images: 3 x 3, no max-pool.

The file is named as in the public code bases; these are He et al., 2016a, not the pre-activation networks of 2016b.
"""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models import layers
from distill.models.network import Network
from distill.models.resnet import BasicBranch
from distill.types import Output


class BasicBlock(BasicBranch):
    """Two 3 x 3 convolutions and a shortcut; ends before its last ReLU."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.shortcut = layers.projection(inputs, width, stride)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the sum."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Sum of branch and shortcut."""
        total: Tensor = self.branch(x) + self.shortcut(x)
        return total


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions and a shortcut; ends before its last ReLU."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = layers.conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = layers.conv3x3(width, width, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = layers.conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = layers.projection(inputs, outputs, stride)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the sum."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Sum of branch and shortcut."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = F.relu(self.bn2(self.conv2(branch)))
        total: Tensor = self.bn3(self.conv3(branch)) + self.shortcut(x)
        return total


class FourStageResNet(Network):
    """ResNet-18, -34, -50, ... for small images, strides 1, 2, 2, 2.

    `stages` are the rectified stem and stage maps, `preacts` the residual sums before the last ReLU of each stage.

    Args:
        blocks: Blocks of each of the four stages.
        bottleneck: Whether they are bottlenecks, four times as wide at their end.
        width: Channels of the stem; stages double it.
        num_classes: Columns of the logits.

    Raises:
        UserError: On sizes that are not positive, or not four stages.
    """

    def __init__(self, *, blocks: Sequence[int], bottleneck: bool, width: int, num_classes: int) -> None:
        super().__init__()
        layers.require_positive(blocks=blocks, width=width, num_classes=num_classes)
        layers.require_length(4, blocks=blocks)
        self.conv1 = layers.conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        kind = Bottleneck if bottleneck else BasicBlock
        self.layer1 = self._stage(kind, width, width, 1, blocks[0])
        self.layer2 = self._stage(kind, kind.expansion * width, 2 * width, 2, blocks[1])
        self.layer3 = self._stage(kind, kind.expansion * 2 * width, 4 * width, 2, blocks[2])
        self.layer4 = self._stage(kind, kind.expansion * 4 * width, 8 * width, 2, blocks[3])
        self.linear = nn.Linear(kind.expansion * 8 * width, num_classes)
        layers.he_normal_(self)

    @staticmethod
    def _stage(
        kind: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, stride: int, blocks: int
    ) -> nn.Sequential:
        rest = (kind(kind.expansion * width, width, 1) for _ in range(blocks - 1))
        return nn.Sequential(kind(inputs, width, stride), *rest)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return tuple(
            cast(BasicBlock | Bottleneck, stage[-1]).last_norm
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4)
        )

    def answer(self, x: Tensor) -> Output:
        x = F.relu(self.bn1(self.conv1(x)))
        stages, preacts = [x], []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x, preact = layers.run_stage(stage, x)
            stages.append(x)
            preacts.append(preact)
        pooled = layers.pool(x)
        return Output(self.classify(pooled), stages=tuple(stages), preacts=tuple(preacts), final=x, pooled=pooled)
