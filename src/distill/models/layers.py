"""What several families share: convolutions, initialisation, shuffles, and stages that show their map before ReLU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError


def conv1x1(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Pointwise convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, groups=groups, bias=False)


def conv3x3(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution over 3 x 3 pixels, padded, without bias."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut of a residual block: the identity where shapes agree, else a normalised 1 x 1 convolution."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv1x1(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs))


def he_normal_(network: nn.Module) -> None:
    """Initialise every convolution from N(0, 2 / (kernel area x output channels)), its bias with zero.

    Source: He et al., 2015, "Delving deep into rectifiers", section 2.2, the variant
    that keeps the variance of the gradient.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def run_stage(units: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run units that end before their last ReLU.

    Args:
        units: Modules that map (batch, channels, height, width) to a map which is yet to be rectified.
        x: The rectified input.

    Returns:
        The stage's map after and before the last ReLU.
    """
    preact = x
    for unit in units:
        preact = unit(x)
        x = F.relu(preact)
    return x, preact


def pool(x: Tensor) -> Tensor:
    """Mean over all positions: (batch, channels, height, width) to (batch, channels)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Transpose channels from (groups, channels / groups) to (channels / groups, groups).

    Source: Zhang et al., 2018, "ShuffleNet", section 3.1. Keeps the memory format, which `torch.channel_shuffle`
    does not on every device.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.unflatten(x.permute(0, 2, 3, 1), 3, (groups, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    return torch.unflatten(x, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def require_positive(**numbers: int | Sequence[int]) -> None:
    """Refuse sizes that are no positive whole numbers, by name.

    Raises:
        UserError: Names the first such size.
    """
    for name, value in numbers.items():
        several = value if isinstance(value, Sequence) else (value,)
        if any(not isinstance(number, int) or number < 1 for number in several):
            kind = "list positive whole numbers" if several is value else "be a positive whole number"
            raise UserError(f"{name} must {kind}, not {value!r}")


def require_length(length: int, **lists: Sequence[int]) -> None:
    """Refuse lists of another length, by name.

    Raises:
        UserError: Names the first such list.
    """
    for name, values in lists.items():
        if len(values) != length:
            raise UserError(f"{name} must list {length} numbers, not {len(values)}")
