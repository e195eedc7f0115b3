"""Students that make one process comparable with two."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from distill.models.network import Network
from distill.models.resnet import CifarResNet
from distill.types import Output


class Halves(Network):
    """A ResNet whose BatchNorm sees a batch as two ranks would: each half by itself.

    Its running statistics follow the first half alone, as those of the first rank do.
    """

    def __init__(self, *, depth: int, widths: list[int], num_classes: int) -> None:
        super().__init__()
        self.inner = CifarResNet(depth=depth, widths=widths, num_classes=num_classes)

    @property
    def published(self) -> nn.Module:
        return self.inner

    def answer(self, x: Tensor) -> Output:
        if not self.training:
            return self.inner.answer(x)
        first, second = x.tensor_split(2)
        one = self.inner.answer(first)
        aside = {name: buffer.clone() for name, buffer in self.inner.named_buffers()}
        other = functional_call(self.inner, aside, (second,))  # its own mean and deviation are 0 and 1
        return Output(logits=torch.cat([one.logits, other.logits]))


class NoNorm(Network):
    """Two convolutions and no BatchNorm: rows do not see each other."""

    def __init__(self, *, width: int, num_classes: int, **_: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.fc = nn.Linear(width, num_classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def answer(self, x: Tensor) -> Output:
        pooled = F.relu(self.second(F.relu(self.first(x)))).mean(dim=(2, 3))
        return Output(logits=self.classify(pooled), pooled=pooled)
