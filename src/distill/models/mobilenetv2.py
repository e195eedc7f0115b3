"""MobileNetV2 for small images (Sandler et al., 2018), in the variant of the distillation literature."""

from typing import cast

from torch import Tensor, nn

from distill.errors import UserError
from distill.models import layers
from distill.models.network import Network
from distill.types import Output

# channels at width 1, units, stride of the first unit: Table 2 of the paper, but for the stride of the second block
BLOCKS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
SHOWN = (1, 2, 4, 6)  # blocks whose maps are stages
LAST_WIDTH = 1280


def _norm_relu(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    """The convolution, normalised and rectified, without the cut at 6 of the paper."""
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()


class InvertedResidual(nn.Module):
    """Expand by a 1 x 1 convolution, filter each channel, project to a linear bottleneck."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *_norm_relu(layers.conv1x1(inputs, inner)),
            *_norm_relu(layers.conv3x3(inner, inner, stride=stride, groups=inner)),
            layers.conv1x1(inner, outputs),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, outputs, height / stride, width / stride), not rectified."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(Network):
    """Seven blocks of inverted residuals after a stem of stride 2; the first block is not expanded.

    `stages` are the rectified stem and the linear bottlenecks of blocks 1, 2, 4 and 6 (counted from 0), which no ReLU
    follows: `preacts` are the same four maps. `final` is the 1 x 1 convolution to 1280 channels after them.

    Args:
        expansion: Of the inner channels, in all blocks but the first.
        width: Multiplies all channels; the last 1280 only if it is above 1.
        num_classes: Columns of the logits.

    Raises:
        UserError: On a width that leaves a block without channels, or sizes that are not positive.
    """

    def __init__(self, *, expansion: int, width: float, num_classes: int) -> None:
        super().__init__()
        layers.require_positive(expansion=expansion, num_classes=num_classes)
        if int(width * BLOCKS[0][0]) < 1:
            raise UserError(f"width must be at least 1/16, or MobileNetV2 has blocks without channels, not {width}")
        inputs = int(width * 32)
        self.conv1 = nn.Sequential(*_norm_relu(layers.conv3x3(3, inputs, stride=2)))
        self.blocks = nn.ModuleList()
        for number, (channels, units, stride) in enumerate(BLOCKS):
            outputs, inner = int(width * channels), expansion if number else 1
            first = InvertedResidual(inputs, outputs, stride, inner)
            rest = (InvertedResidual(outputs, outputs, 1, inner) for _ in range(units - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            inputs = outputs
        last = int(LAST_WIDTH * max(1.0, width))
        self.conv2 = nn.Sequential(*_norm_relu(layers.conv1x1(inputs, last)))
        head = nn.Linear(last, num_classes)
        self._modules["classifier"] = nn.Sequential(head)  # the published key; the property below stands before it
        layers.he_normal_(self)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)

    @property
    def classifier(self) -> nn.Linear:
        return cast(nn.Linear, cast(nn.Sequential, self._modules["classifier"])[0])

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return tuple(self._bottleneck(number).conv[-1] for number in SHOWN)

    def _bottleneck(self, block: int) -> InvertedResidual:
        return cast(InvertedResidual, cast(nn.Sequential, self.blocks[block])[-1])

    def answer(self, x: Tensor) -> Output:
        x = self.conv1(x)
        stages = [x]
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in SHOWN:
                stages.append(x)
        final = self.conv2(x)
        pooled = layers.pool(final)
        return Output(
            self.classify(pooled), stages=tuple(stages), preacts=tuple(stages[1:]), final=final, pooled=pooled
        )
