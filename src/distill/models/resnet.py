"""Residual networks for small images: a 3 x 3 stem and three stages (He et al., 2016, section 4.2)."""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.models import layers
from distill.models.network import Network
from distill.types import Output


class BasicBranch(nn.Module):
    """The two 3 x 3 convolutions of a basic block, (batch, inputs, h, w) to (batch, width, h / stride, w / stride)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv3x3(inputs, width, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = layers.conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the sum."""
        return self.bn2

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut."""
        branch: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return branch


class BottleneckBranch(nn.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions of a bottleneck, four times as wide at their end."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = layers.conv3x3(width, width, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = layers.conv1x1(width, self.expansion * width)
        self.bn3 = nn.BatchNorm2d(self.expansion * width)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the sum."""
        return self.bn3

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = F.relu(self.bn2(self.conv2(branch)))
        last: Tensor = self.bn3(self.conv3(branch))
        return last


class BasicBlock(BasicBranch):
    """A basic block that ends before its last ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.downsample = layers.projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of branch and shortcut."""
        total: Tensor = self.branch(x) + self.downsample(x)
        return total


class CifarResNet(Network):
    """ResNet of depth 6n + 2 with n basic blocks in each of three stages, strides 1, 2, 2.

    `stages` are the rectified stem and stage maps, `preacts` the residual sums before the last ReLU of each stage.

    Args:
        depth: Layers with weights, 6n + 2.
        widths: Channels of the stem and of the three stages.
        num_classes: Columns of the logits.

    Raises:
        UserError: On another depth, or widths that are not four positive numbers.
    """

    def __init__(self, *, depth: int, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        layers.require_positive(depth=depth, widths=widths, num_classes=num_classes)
        layers.require_length(4, widths=widths)
        blocks, rest = divmod(depth - 2, 6)
        if rest or not blocks:
            raise UserError(f"the depth of a ResNet for small images is 6n + 2 (8, 14, 20, ...), not {depth}")
        stem, *stages = widths
        self.conv1 = layers.conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = self._stage(stem, stages[0], 1, blocks)
        self.layer2 = self._stage(stages[0], stages[1], 2, blocks)
        self.layer3 = self._stage(stages[1], stages[2], 2, blocks)
        self.fc = nn.Linear(stages[2], num_classes)
        layers.he_normal_(self)

    @staticmethod
    def _stage(inputs: int, width: int, stride: int, blocks: int) -> nn.Sequential:
        rest = (BasicBlock(width, width, 1) for _ in range(blocks - 1))
        return nn.Sequential(BasicBlock(inputs, width, stride), *rest)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return tuple(cast(BasicBlock, stage[-1]).last_norm for stage in (self.layer1, self.layer2, self.layer3))

    def answer(self, x: Tensor) -> Output:
        stem = F.relu(self.bn1(self.conv1(x)))
        f1, p1 = layers.run_stage(self.layer1, stem)
        f2, p2 = layers.run_stage(self.layer2, f1)
        f3, p3 = layers.run_stage(self.layer3, f2)
        pooled = layers.pool(f3)
        return Output(self.classify(pooled), stages=(stem, f1, f2, f3), preacts=(p1, p2, p3), final=f3, pooled=pooled)
