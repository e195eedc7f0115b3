"""Crops of random size and place, and rectangles of noise: drawn for a whole epoch, made a batch at a time."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TRIES = 10  # boxes drawn for each image, of which the first that fits is taken
ERASED = (0.02, 1 / 3)  # part of the image
ERASED_RATIO = (0.3, 1 / 0.3)


def draw_boxes(
    images: int, *, side: int, area: Sequence[float], ratio: Sequence[float], whole: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Boxes of random area, aspect and place within square images (Szegedy et al., 2015, arXiv 1409.4842, section 6).

    Args:
        images: How many boxes.
        side: Of an image, in px.
        area: Least and largest part of the image.
        ratio: Least and largest width over height; its logarithm is uniform.
        whole: Whether a box may be as wide or as high as the image.
        generator: On the CPU.

    Returns:
        (top, left, height, width) of each, shape (images, 4), int64, and whether one was found, shape (images,): where
        none was, it is the whole image.
    """
    shape = (images, TRIES)
    pixels = _between(area, torch.rand(shape, generator=generator)) * side**2
    aspect = _between([math.log(r) for r in ratio], torch.rand(shape, generator=generator)).exp()
    height, width = (pixels / aspect).sqrt().round(), (pixels * aspect).sqrt().round()
    largest = side if whole else side - 1
    fits = (height <= largest) & (width <= largest)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    height, width = (x.gather(1, first)[:, 0].masked_fill(~found, side) for x in (height, width))
    top, left = (torch.rand(2, images, generator=generator) * (side - torch.stack([height, width]) + 1)).floor()
    return torch.stack([top, left, height, width], dim=1).long(), found


def _between(limits: Sequence[float], part: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * part


def resized_crops(images: Tensor, boxes: Tensor, *, size: int) -> Tensor:
    """Crop each image to its box and resize that bicubically, as PIL does: smoothed where it shrinks.

    Resizing is linear and separable: two products of matrices, rounded to whole grey values in between.

    Args:
        images: Shape (batch, 3, height, width), uint8 or whole numbers.
        boxes: (top, left, height, width) of each, shape (batch, 4), on the same device.
        size: Height and width of the result.

    Returns:
        Whole numbers from 0 to 255, float32, shape (batch, 3, size, size).
    """
    x = images.float()
    top, left, height, width = boxes.unbind(1)
    across = _weights(left, width, size=size, side=x.shape[3])
    down = _weights(top, height, size=size, side=x.shape[2])
    x = _whole(x @ across[:, None].mT)
    return _whole(down[:, None] @ x)


def _whole(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0, 255)


def _weights(first: Tensor, length: Tensor, *, size: int, side: int) -> Tensor:
    """How much each of a line's pixels counts for each of the resized crop's, shape (batch, size, side)."""
    scale = (length / size)[:, None, None]
    centre = (torch.arange(size, device=first.device) + 0.5)[:, None] * scale
    place = torch.arange(side, device=first.device) - first[:, None, None]  # within the crop
    weight = _cubic((place + 0.5 - centre) / scale.clamp(min=1))
    weight = weight * ((place >= 0) & (place < length[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -1/2."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def draw_erasures(images: int, *, side: int, probability: float, generator: torch.Generator) -> Tensor:
    """Boxes to erase (Zhong et al., 2020, arXiv 1708.04896) with timm's numbers: (top, left, height, width), int64.

    Those of images that stay as they are have no height.
    """
    boxes, found = draw_boxes(images, side=side, area=ERASED, ratio=ERASED_RATIO, whole=False, generator=generator)
    erased = found & (torch.rand(images, generator=generator) < probability)
    return boxes * erased[:, None]


def erase(
    images: Tensor, boxes: Tensor, noise: Tensor, starts: Tensor, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Put noise into the box of each image.

    Args:
        images: Shape (batch, channels, height, width).
        boxes: See `draw_erasures`, on the same device.
        noise: A long row of it.
        starts: Where each image's pixels begin in the row, shape (batch,).
        mean: Added to the noise of each channel.
        std: Times which it is taken before.

    Returns:
        As `images`; the noise has one value per pixel and channel, which depends on `starts` alone.
    """
    _, channels, height, width = images.shape
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    within = ((rows >= top) & (rows < top + tall))[:, :, None] & ((columns >= left) & (columns < left + wide))[:, None]
    own = torch.arange(channels * height * width, device=images.device).view(channels, height, width)
    centre, spread = (images.new_tensor(m).view(-1, 1, 1) for m in (mean, std))
    return torch.where(within[:, None], noise[starts[:, None, None, None] + own] * spread + centre, images)
