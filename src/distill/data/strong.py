"""Strong views: RandAugment's operations in FixMatch's selection (Sohn et al., 2020), then cutout, a batch at a time.

The variant of MLKD's public code (Jin-Ying/Multi-Level-Logit-Distillation): two operations drawn with replacement and
at uniform magnitude, on whole grey values as PIL computes them, then a filled square.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

# grey values of an image, (images, 3, height, width), whole numbers of 0 to 255 in float32, and magnitudes (images,)
Operation = Callable[[Tensor, Tensor], Tensor]

ROUNDS = 2  # operations on an image
LARGEST_CUT = 0.5  # side of the square, in widths of the image
FILL = (125, 123, 114)  # CIFAR's mean colour


def identity(x: Tensor, _: Tensor) -> Tensor:
    """The image as it is."""
    return x


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the full range."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, ((x - low) * 255 / (high - low).clamp(min=1)).floor(), x)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Map the values of each channel so that they are spread evenly."""
    values = x.flatten(2).long()
    counts = x.new_zeros((*x.shape[:2], 256)).scatter_add_(2, values, torch.ones_like(x).flatten(2))
    of_highest = counts.gather(2, values.amax(2, keepdim=True))
    step = ((values.shape[2] - of_highest) / 255).floor()
    below = counts.cumsum(2) - counts
    table = ((below + (step / 2).floor()) / step.clamp(min=1)).floor().clamp(max=255)
    return torch.where(step[..., None] > 0, table.gather(2, values).view_as(x), x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the leading bits, whose number is cut to a whole one."""
    step = (8 - _spread(bits).floor()).exp2()
    return (x / step).floor() * step


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values that reach a threshold."""
    return torch.where(x < _spread(threshold), x, 255 - x)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Between black (0) and the image (1), or beyond."""
    return _blend(torch.zeros_like(x), x, factor)


def color(x: Tensor, factor: Tensor) -> Tensor:
    """Between the grey image (0) and the image (1), or beyond."""
    return _blend(_grey(x), x, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Between the image's mean grey (0) and the image (1), or beyond."""
    return _blend((_grey(x).mean((2, 3), keepdim=True) + 0.5).floor(), x, factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Between the smoothed image (0), whose border is not smoothed, and the image (1), or beyond."""
    inner = x[:, :, 1:-1, 1:-1]
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = ((F.avg_pool2d(x, 3, 1, divisor_override=1) + 4 * inner) / 13 + 0.5).floor()
    return _blend(smooth, x, factor)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Turn about the centre, anticlockwise."""
    return _warp(x, *turned(x, degrees))


def turned(x: Tensor, degrees: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Where a pixel comes from in a rotation about the centre: a, b, c across and likewise down, see `_warp`."""
    angle = _spread(degrees).squeeze(1) * (torch.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    height, width = x.shape[2:]
    across = (cos, -sin, (width - cos * width + sin * height) / 2)
    return across, (sin, cos, (height - sin * width - cos * height) / 2)


def shear_x(x: Tensor, slope: Tensor) -> Tensor:
    """Shift each row to the left by slope times its distance from the top."""
    return _warp(x, (1, _spread(slope).squeeze(1), 0), (0, 1, 0))


def shear_y(x: Tensor, slope: Tensor) -> Tensor:
    """Shift each column up by slope times its distance from the left."""
    return _warp(x, (1, 0, 0), (_spread(slope).squeeze(1), 1, 0))


def translate_x(x: Tensor, widths: Tensor) -> Tensor:
    """Shift to the left by a part of the width."""
    return _warp(x, (1, 0, _spread(widths).squeeze(1) * x.shape[3]), (0, 1, 0))


def translate_y(x: Tensor, heights: Tensor) -> Tensor:
    """Shift up by a part of the height."""
    return _warp(x, (1, 0, 0), (0, 1, _spread(heights).squeeze(1) * x.shape[2]))


def _spread(values: Tensor) -> Tensor:
    """(images,) as (images, 1, 1, 1)."""
    return values[:, None, None, None]


def _grey(x: Tensor) -> Tensor:
    """Luma, (images, 1, height, width): every sum is a whole number that float32 holds."""
    red, green, blue = x.unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()[:, None]


def _blend(other: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return (other + _spread(factor) * (x - other)).floor().clamp(0, 255)


def _warp(x: Tensor, across: tuple[Tensor | int, ...], down: tuple[Tensor | int, ...]) -> Tensor:
    """The nearest pixel at a*x + b*y + c across and likewise down, for centres of pixels; black outside the image.

    Args:
        x: Shape (images, 3, height, width).
        across: a, b, c, each a number or (images, 1, 1).
        down: Likewise.
    """
    height, width = x.shape[2:]
    columns = torch.arange(width, device=x.device) + 0.5
    rows = (torch.arange(height, device=x.device) + 0.5)[:, None]
    column, row = ((a * columns + b * rows + c).floor() for a, b, c in (across, down))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    place = place.long().expand(len(x), height, width).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, place).view_as(x) * inside.expand(len(x), height, width)[:, None]


# with the range of each one's magnitude
OPERATIONS: tuple[tuple[Operation, float, float], ...] = (
    (autocontrast, 0, 0),
    (brightness, 0.05, 0.95),
    (color, 0.05, 0.95),
    (contrast, 0.05, 0.95),
    (equalize, 0, 0),
    (identity, 0, 0),
    (posterize, 4, 8),
    (rotate, -30, 30),
    (sharpness, 0.05, 0.95),
    (shear_x, -0.3, 0.3),
    (shear_y, -0.3, 0.3),
    (solarize, 0, 256),
    (translate_x, -0.3, 0.3),
    (translate_y, -0.3, 0.3),
)


class Draw(NamedTuple):
    """What is done to each of some images; on the CPU.

    Attributes:
        operations: Places in `OPERATIONS`, in the order in which they are applied, shape (images, ROUNDS), int64.
        magnitudes: Of each, shape (images, ROUNDS), float32.
        cuts: Side of the square in widths of the image, its centre in widths and in heights, shape (images, 3).
    """

    operations: Tensor
    magnitudes: Tensor
    cuts: Tensor

    def take(self, rows: slice | Tensor) -> Self:
        """That of some of the images."""
        return type(self)(*(tensor[rows] for tensor in self))


def draw(images: int, *, generator: torch.Generator | None) -> Draw:
    """Draw for a number of images; without a generator from the process's own random numbers."""
    operations = torch.randint(len(OPERATIONS), (images, ROUNDS), generator=generator)
    low, high = torch.tensor([limits for _, *limits in OPERATIONS])[operations].unbind(2)
    magnitudes = low + (high - low) * torch.rand(images, ROUNDS, generator=generator)
    cuts = torch.rand(images, 3, generator=generator) * torch.tensor([LARGEST_CUT, 1, 1])
    return Draw(operations, magnitudes, cuts)


def strengthen(images: Tensor, drawn: Draw) -> Tensor:
    """Apply what was drawn, without waiting for the device.

    An image's result depends on what was drawn for it alone, not on what else is in the batch.

    Args:
        images: Cropped and flipped, shape (batch, 3, height, width), uint8, on any device.
        drawn: For each of them.

    Returns:
        As `images`, channels-last in memory.
    """
    x = images.float().contiguous()
    for operations, magnitudes in zip(drawn.operations.T, drawn.magnitudes.T, strict=True):
        x = apply(x, [operation for operation, *_ in OPERATIONS], operations, magnitudes)
    return _cut_out(x, drawn.cuts).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def apply(x: Tensor, table: Sequence[Operation], operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Each row's own operation, on all rows that share it at once: the host, which drew them, knows how many.

    Args:
        x: See `Operation`.
        table: All operations.
        operations: Place in the table of each row's, shape (images,), int64, on the CPU.
        magnitudes: Of each, shape (images,), likewise.
    """
    order = operations.argsort(stable=True)
    counts = operations.bincount(minlength=len(table)).tolist()
    back, order, magnitudes = (
        tensor.to(x.device, non_blocking=True) for tensor in (order.argsort(), order, magnitudes[order])
    )
    groups = zip(table, torch.split(x.index_select(0, order), counts), torch.split(magnitudes, counts), strict=True)
    return torch.cat([operation(rows, own) for operation, rows, own in groups if len(rows)]).index_select(0, back)


def _cut_out(x: Tensor, cuts: Tensor) -> Tensor:
    """Fill a square of each image, in place."""
    height, width = x.shape[2:]
    side, across, down = cuts.to(x.device, non_blocking=True).T[..., None]  # each (images, 1)
    columns, rows = (_within(m * n, side * width, n) for m, n in ((across, width), (down, height)))
    square = rows[:, :, None] & columns[:, None, :]
    for channel, value in enumerate(FILL):
        x[:, channel].masked_fill_(square, value)
    return x


def _within(middle: Tensor, side: Tensor, length: int) -> Tensor:
    """Which of the pixels along one axis belong to the square, its first and its last included, as PIL draws it."""
    first = (middle - side / 2).clamp(min=0).floor()
    last = (first + side).clamp(max=length).floor()
    pixels = torch.arange(length, device=middle.device)
    return (pixels >= first) & (pixels <= last)


class TwoViews:
    """A worker's transform that gives two views of an image, drawn one after the other: weak, and strong.

    Args:
        weak: Gives one, shape (3, height, width), uint8, drawn from the process's random numbers.
    """

    def __init__(self, weak: Callable[[Tensor], Tensor]) -> None:
        self.weak = weak

    def __call__(self, image: Tensor) -> Tensor:
        """Both views, shape (2, 3, height, width), uint8."""
        weak, again = self.weak(image), self.weak(image)
        return torch.stack([weak, strengthen(again[None], draw(1, generator=None))[0]])
