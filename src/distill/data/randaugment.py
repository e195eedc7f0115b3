"""timm's RandAugment (`rand-m9-mstd0.5-inc1`, say; Cubuk et al., 2020, arXiv 1909.13719), a batch at a time.

The variant in which all operations grow with the magnitude, as DeiT uses it: two of fifteen, drawn with replacement,
each applied to every other image, with a magnitude that is drawn too. Geometric ones interpolate bicubically, as PIL.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from distill.data import strong
from distill.data.strong import Operation

ROUNDS = 2  # operations on an image
APPLIED = 0.5  # each with this probability
TOP = 10.0  # the largest magnitude

Fill = Sequence[float]  # grey value of each channel where nothing of the image is
Line = tuple[Tensor | int, ...]


def invert(x: Tensor, _: Tensor) -> Tensor:
    """The negative."""
    return 255 - x


def solarize_add(x: Tensor, added: Tensor) -> Tensor:
    """Lighten the darker half of the values."""
    return torch.where(x < 128, (x + added[:, None, None, None]).clamp(max=255), x)


def rotate(x: Tensor, degrees: Tensor, *, fill: Fill) -> Tensor:
    """Turn about the centre, anticlockwise."""
    return warp(x, *strong.turned(x, degrees), fill=fill)


def shear_x(x: Tensor, slope: Tensor, *, fill: Fill) -> Tensor:
    """Shift each row to the left by slope times its distance from the top."""
    return warp(x, (1, slope[:, None, None], 0), (0, 1, 0), fill=fill)


def shear_y(x: Tensor, slope: Tensor, *, fill: Fill) -> Tensor:
    """Shift each column up by slope times its distance from the left."""
    return warp(x, (1, 0, 0), (slope[:, None, None], 1, 0), fill=fill)


def translate_x(x: Tensor, widths: Tensor, *, fill: Fill) -> Tensor:
    """Shift to the left by a part of the width."""
    return warp(x, (1, 0, widths[:, None, None] * x.shape[3]), (0, 1, 0), fill=fill)


def translate_y(x: Tensor, heights: Tensor, *, fill: Fill) -> Tensor:
    """Shift up by a part of the height."""
    return warp(x, (1, 0, 0), (0, 1, heights[:, None, None] * x.shape[2]), fill=fill)


def warp(x: Tensor, across: Line, down: Line, *, fill: Fill) -> Tensor:
    """What lies at a*x + b*y + c across and likewise down, for centres of pixels, by bicubic interpolation.

    Args:
        x: Shape (images, 3, height, width).
        across: a, b, c, each a number or (images, 1, 1).
        down: Likewise.
        fill: What lies outside the image.
    """
    images, channels, height, width = x.shape
    columns = torch.arange(width, device=x.device) + 0.5
    rows = (torch.arange(height, device=x.device) + 0.5)[:, None]
    column, row = ((a * columns + b * rows + c).expand(images, height, width) for a, b, c in (across, down))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    left, of_columns = _taps(column)
    top, of_rows = _taps(row)
    flat, total = x.flatten(2), torch.zeros_like(x)
    for i, vertical in enumerate(of_rows):
        line = torch.zeros_like(x)
        start = (top + i).clamp(0, height - 1) * width
        for j, horizontal in enumerate(of_columns):
            place = start + (left + j).clamp(0, width - 1)
            found = flat.gather(2, place.long().flatten(1)[:, None].expand(-1, channels, -1))
            line.addcmul_(found.view_as(x), horizontal[:, None])
        total.addcmul_(line, vertical[:, None])
    colour = total.new_tensor(fill).view(1, -1, 1, 1)
    return torch.where(inside[:, None], total.clamp(0, 255).floor(), colour)


def _taps(place: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The first of the four pixels around a place, and the weight of each: Keys' cubic with a = -1, as PIL has it."""
    place = place - 0.5
    first = place.floor()
    d = place - first
    e = 1 - d
    return first - 1, (-d * e * e, 1 + d * d * (d - 2), 1 + e * e * (e - 2), -e * d * d)


def _sign(level: Tensor, sign: Tensor, *, most: float) -> Tensor:
    return sign * level * (most / TOP)


def _enhanced(level: Tensor, sign: Tensor) -> Tensor:
    return (1 + sign * level * (0.9 / TOP)).clamp(min=0.1)


def _kept_bits(level: Tensor, _: Tensor) -> Tensor:
    return 4 - (level * (4 / TOP)).floor()


def _threshold(level: Tensor, _: Tensor) -> Tensor:
    return 256 - (level * (256 / TOP)).floor().clamp(max=256)


def _added(level: Tensor, _: Tensor) -> Tensor:
    return (level * (110 / TOP)).floor().clamp(max=128)


def _nothing(level: Tensor, _: Tensor) -> Tensor:
    return torch.zeros_like(level)


# with what makes its magnitude of a level from 0 to 10 and a sign
OPERATIONS: tuple[tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]], ...] = (
    (strong.autocontrast, _nothing),
    (strong.equalize, _nothing),
    (invert, _nothing),
    (rotate, partial(_sign, most=30)),
    (strong.posterize, _kept_bits),
    (strong.solarize, _threshold),
    (solarize_add, _added),
    (strong.color, _enhanced),
    (strong.contrast, _enhanced),
    (strong.brightness, _enhanced),
    (strong.sharpness, _enhanced),
    (shear_x, partial(_sign, most=0.3)),
    (shear_y, partial(_sign, most=0.3)),
    (translate_x, partial(_sign, most=0.45)),
    (translate_y, partial(_sign, most=0.45)),
    (strong.identity, _nothing),  # of the rounds that are left out
)
GEOMETRIC = (rotate, shear_x, shear_y, translate_x, translate_y)


def filled(fill: Fill) -> list[Operation]:
    """All operations in the order of `OPERATIONS`, as functions of images and magnitudes."""
    return [partial(operation, fill=fill) if operation in GEOMETRIC else operation for operation, _ in OPERATIONS]


def draw(images: int, *, magnitude: float, deviation: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Operations and their magnitudes for a number of images.

    Args:
        images: How many.
        magnitude: Mean level, of 0 to 10.
        deviation: Its standard deviation; levels are cut to 0 and 10.
        generator: On the CPU.

    Returns:
        Places in `OPERATIONS` in the order of application, int64, and their magnitudes, both (images, ROUNDS).
    """
    shape = (images, ROUNDS)
    operations = torch.randint(len(OPERATIONS) - 1, shape, generator=generator)
    left_out = torch.rand(shape, generator=generator) >= APPLIED
    operations = operations.masked_fill(left_out, len(OPERATIONS) - 1)
    level = (magnitude + deviation * torch.randn(shape, generator=generator)).clamp(0, TOP)
    sign = torch.randint(2, shape, generator=generator) * 2.0 - 1
    of_each = torch.stack([makes(level, sign) for _, makes in OPERATIONS])
    return operations, of_each.gather(0, operations[None])[0]
