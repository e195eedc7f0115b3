"""MobileNet for ImageNet (Howard et al., 2017, Table 1): depthwise-separable convolutions."""

from typing import cast

from torch import Tensor, nn

from distill.models import layers
from distill.models.network import Network
from distill.types import Output

STEM = 32
# channels and stride of each unit: Table 1 of the paper, whose last unit has stride 1 as its sizes say
UNITS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
SHOWN = (3, 5, 11, 13)  # units, counted from 1, at the end of the sizes 1/4, 1/8, 1/16 and 1/32: stages


def _norm_relu(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()


def unit(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution of each channel and a 1 x 1 convolution, each normalised and rectified."""
    return nn.Sequential(
        *_norm_relu(layers.conv3x3(inputs, inputs, stride=stride, groups=inputs)),
        *_norm_relu(layers.conv1x1(inputs, outputs)),
    )


class MobileNetV1(Network):
    """A stem of stride 2 and thirteen depthwise-separable units, 1/32 of the image's size at the end.

    The network of the distillation literature's "ResNet50 -> MobileNetV1" (OFD, CRD, ReviewKD, DKD), with its keys;
    some code bases call it MobileNetV2. Unlike there the last map is averaged over all of its positions, not over 7 x
    7, so that images of any size fit.

    `stages` are the rectified stem, which public code leaves out of its list, and the maps at the end of the four sizes
    below it, where those of ResNets end: stage i of either network has the same size. `preacts` are these four before
    their last ReLU, and what `norms` answer. Initialised as PyTorch does by default, as in public code.

    Args:
        num_classes: Columns of the logits.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        layers.require_positive(num_classes=num_classes)
        widths = [STEM, *(outputs for outputs, _ in UNITS)]
        self.model = nn.Sequential(
            nn.Sequential(*_norm_relu(layers.conv3x3(3, STEM, stride=2))),
            *(unit(inputs, *made) for inputs, made in zip(widths, UNITS, strict=False)),
        )
        self.fc = nn.Linear(widths[-1], num_classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return tuple(cast(nn.Sequential, self.model[number])[-2] for number in SHOWN)

    def answer(self, x: Tensor) -> Output:
        stages, preacts = [], []
        for number, modules in enumerate(self.model):
            *before, rectify = cast(nn.Sequential, modules)
            for module in before:
                x = module(x)
            preact, x = x, rectify(x)
            if number in SHOWN:
                preacts.append(preact)
            if number in (0, *SHOWN):
                stages.append(x)
        pooled = layers.pool(x)
        return Output(self.classify(pooled), stages=tuple(stages), preacts=tuple(preacts), final=x, pooled=pooled)
