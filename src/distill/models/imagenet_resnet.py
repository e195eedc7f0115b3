"""Residual networks for ImageNet (He et al., 2016, Table 1): a 7 x 7 stem of stride 2, max-pooled, and four stages.

Keys, shapes and numbers are those of torchvision's ResNet (a bottleneck's stride is in its 3 x 3 convolution), so that
its published weights fit as they are.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models import layers
from distill.models.resnet import BasicBlock, BottleneckBranch
from distill.models.resnetv2 import FourStages


class Bottleneck(BottleneckBranch):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut; ends before its last ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.downsample = layers.projection(inputs, self.expansion * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of branch and shortcut."""
        total: Tensor = self.branch(x) + self.downsample(x)
        return total


class ImageNetResNet(FourStages):
    """ResNet-18, -34, -50, ... for images of some 224 px; see `FourStages`. The stem is shown before its max-pool."""

    kinds = (BasicBlock, Bottleneck)

    @staticmethod
    def stem_convolution(width: int) -> nn.Conv2d:
        """7 x 7, with stride 2."""
        return nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)

    def name_classifier(self, head: nn.Linear) -> None:
        self.fc = head

    def pool_stem(self, x: Tensor) -> Tensor:
        """Half its size, by maxima."""
        return F.max_pool2d(x, 3, stride=2, padding=1)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc
