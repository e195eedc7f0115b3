"""Residual networks with the four stages of the ImageNet ones but a stem for small images: 3 x 3, no max-pool.

The file is named as in the public code bases; these are He et al., 2016a, not the pre-activation networks of 2016b.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models import layers
from distill.models.network import Network
from distill.models.resnet import BasicBranch, BottleneckBranch
from distill.types import Output


class BasicBlock(BasicBranch):
    """Two 3 x 3 convolutions and a shortcut; ends before its last ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.shortcut = layers.projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of branch and shortcut."""
        total: Tensor = self.branch(x) + self.shortcut(x)
        return total


class Bottleneck(BottleneckBranch):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut; ends before its last ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.shortcut = layers.projection(inputs, self.expansion * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of branch and shortcut."""
        total: Tensor = self.branch(x) + self.shortcut(x)
        return total


class FourStages(Network):
    """What residual networks of four stages share, strides 1, 2, 2, 2: all but the stem and the names of parts.

    `stages` are the rectified stem and stage maps, `preacts` the residual sums before the last ReLU of each stage.

    Args:
        blocks: Blocks of each of the four stages.
        bottleneck: Whether they are bottlenecks, four times as wide at their end.
        width: Channels of the stem; stages double it.
        num_classes: Columns of the logits.

    Raises:
        UserError: On sizes that are not positive, or not four stages.
    """

    # a basic block, and a bottleneck
    kinds: ClassVar[tuple[type[BasicBranch], type[BottleneckBranch]]]

    def __init__(self, *, blocks: Sequence[int], bottleneck: bool, width: int, num_classes: int) -> None:
        super().__init__()
        layers.require_positive(blocks=blocks, width=width, num_classes=num_classes)
        layers.require_length(4, blocks=blocks)
        self.conv1 = self.stem_convolution(width)
        self.bn1 = nn.BatchNorm2d(width)
        kind = self.kinds[1] if bottleneck else self.kinds[0]
        self.layer1 = self._stage(kind, width, width, 1, blocks[0])
        self.layer2 = self._stage(kind, kind.expansion * width, 2 * width, 2, blocks[1])
        self.layer3 = self._stage(kind, kind.expansion * 2 * width, 4 * width, 2, blocks[2])
        self.layer4 = self._stage(kind, kind.expansion * 4 * width, 8 * width, 2, blocks[3])
        self.name_classifier(nn.Linear(kind.expansion * 8 * width, num_classes))
        layers.he_normal_(self)

    @staticmethod
    def _stage(
        kind: type[BasicBranch] | type[BottleneckBranch], inputs: int, width: int, stride: int, blocks: int
    ) -> nn.Sequential:
        rest = (kind(kind.expansion * width, width, 1) for _ in range(blocks - 1))
        return nn.Sequential(kind(inputs, width, stride), *rest)

    @staticmethod
    @abstractmethod
    def stem_convolution(width: int) -> nn.Conv2d:
        """The first layer."""

    @abstractmethod
    def name_classifier(self, head: nn.Linear) -> None:
        """Keep the last layer, under its published key."""

    def pool_stem(self, x: Tensor) -> Tensor:
        """What the first stage reads of the stem's rectified map."""
        return x

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return tuple(
            cast(BasicBranch | BottleneckBranch, stage[-1]).last_norm
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4)
        )

    def answer(self, x: Tensor) -> Output:
        stem = F.relu(self.bn1(self.conv1(x)))
        x = self.pool_stem(stem)
        stages, preacts = [stem], []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x, preact = layers.run_stage(stage, x)
            stages.append(x)
            preacts.append(preact)
        pooled = layers.pool(x)
        return Output(self.classify(pooled), stages=tuple(stages), preacts=tuple(preacts), final=x, pooled=pooled)


class FourStageResNet(FourStages):
    """ResNet-18, -34, -50, ... for small images; see `FourStages`."""

    kinds = (BasicBlock, Bottleneck)

    @staticmethod
    def stem_convolution(width: int) -> nn.Conv2d:
        """3 x 3, without stride."""
        return layers.conv3x3(3, width)

    def name_classifier(self, head: nn.Linear) -> None:
        self.linear = head

    @property
    def classifier(self) -> nn.Linear:
        return self.linear
