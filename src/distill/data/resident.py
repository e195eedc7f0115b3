"""Small images: whole on the device as uint8, cropped, flipped and turned there, a batch at a time."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.base import ImageData, Part
from distill.data.loader import Loader, TrainLoader
from distill.data.order import epoch_order, generator, mixed
from distill.data.strong import draw, rotate, strengthen
from distill.errors import UserError
from distill.types import Batch

Maker = Callable[[slice, Tensor], Tensor]


def draw_views(num_samples: int, *, padding: int, flip: bool, seed: int, epoch: int) -> Tensor:
    """The epoch's augmentation of every sample.

    Args:
        num_samples: Samples in the training set.
        padding: Zeros on each side, within which crops lie.
        flip: Whether to mirror every other image, at random.
        seed: Of the run.
        epoch: From 0.

    Returns:
        (dy, dx, flip) of each sample, shape (num_samples, 3), uint8: offsets of the crop in 0..2*padding, of which
        (padding, padding, 0) is the image itself.
    """
    offsets = torch.randint(2 * padding + 1, (num_samples, 2), generator=generator(seed, epoch, "crop"))
    mirrored = torch.randint(2, (num_samples, 1), generator=generator(seed, epoch, "flip")) * flip
    return torch.cat([offsets, mirrored], dim=1).to(torch.uint8)


def count_views(*, padding: int, flip: bool) -> int:
    """How many different views `draw_views` draws from."""
    return (2 * padding + 1) ** 2 * (1 + flip)


def number_views(views: Tensor, *, padding: int, flip: bool) -> Tensor:
    """Number of each view (dy, dx, flip), shape (samples, 3): 0 to `count_views` - 1, shape (samples,), int64."""
    dy, dx, mirrored = views.long().unbind(1)
    number: Tensor = dy * (2 * padding + 1) + dx
    return 2 * number + mirrored if flip else number


def view_numbered(numbers: Tensor, *, padding: int, flip: bool) -> Tensor:
    """The inverse of `number_views`: (dy, dx, flip) of each number, shape (samples, 3), uint8."""
    place, mirrored = (numbers // 2, numbers % 2) if flip else (numbers, torch.zeros_like(numbers))
    side = 2 * padding + 1
    return torch.stack([place // side, place % side, mirrored], dim=1).to(torch.uint8)


def crop_and_flip(padded: Tensor, index: Tensor, view: Tensor, *, padding: int) -> Tensor:
    """Augment by one gather.

    Args:
        padded: Padded images, shape (samples, height + 2*padding, width + 2*padding, 3).
        index: Which of them, shape (batch,).
        view: (dy, dx, flip) of each, see `draw_views`, shape (batch, 3).
        padding: Zeros on each side.

    Returns:
        Shape (batch, 3, height, width), channels-last in memory, of the type of `padded`.
    """
    height, width = (side - 2 * padding for side in padded.shape[1:3])
    dy, dx, mirrored = view.long().unsqueeze(2).unbind(1)  # each (batch, 1)
    rows = dy + torch.arange(height, device=padded.device)
    columns = torch.arange(width, device=padded.device)
    columns = dx + torch.where(mirrored.bool(), width - 1 - columns, columns)
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def draw_turns(num_samples: int, *, rotation: float, seed: int, epoch: int) -> Tensor:
    """How far the epoch turns each sample: degrees, uniform in -rotation..rotation, shape (num_samples,), float32."""
    return (2 * torch.rand(num_samples, generator=generator(seed, epoch, "turn")) - 1) * rotation


def turn(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn images about their centres to the nearest pixel, black where nothing is, as torchvision's RandomRotation.

    Args:
        images: Shape (batch, 3, height, width), uint8.
        degrees: Anticlockwise, shape (batch,), on the same device.

    Returns:
        As `images`, channels-last in memory.
    """
    return rotate(images.float(), degrees).to(torch.uint8).contiguous(memory_format=torch.channels_last)


class ResidentTrain(TrainLoader):
    """Shuffled and augmented batches, made where the images lie, without waiting for the device.

    Args:
        images: Not padded, shape (samples, height, width, 3), uint8.
        labels: Shape (samples,), int64.
        device: Where to keep the images and make the batches.
        padding: Zeros on each side, within which crops lie.
        flip: Whether to mirror.
        rotation: Most degrees that an image is turned by after that, either way; 0 leaves it upright.
        strong: Whether to make a strong view beside, from a crop, flip and turn of its own.
        **common: See `TrainLoader`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        device: torch.device,
        padding: int,
        flip: bool,
        rotation: float = 0.0,
        strong: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(num_samples=len(labels), **common)
        self.images = F.pad(images.to(device), (0, 0, padding, padding, padding, padding))
        self.labels = labels.to(device)
        self.padding = padding
        self.flip = flip
        self.rotation = rotation
        self.strong = strong

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The epoch's batches from the start-th on; `view` and `names` say which augmentation each row is.

        Turned images have neither: their views are without number.
        """
        count = len(self.labels)
        views = draw_views(count, padding=self.padding, flip=self.flip, seed=self.seed, epoch=epoch)
        order = epoch_order(count, seed=self.seed, epoch=epoch)
        numbers = number_views(views, padding=self.padding, flip=self.flip)
        names = order * count_views(padding=self.padding, flip=self.flip) + numbers[order]
        views = views[order].to(self.images.device)
        weak = self._maker(order, views, seed=self.seed, epoch=epoch)
        strong = self._strong(order, epoch) if self.strong else None
        order = order.to(self.images.device)
        labels = self.labels[order]
        for batch in range(start, len(self)):
            mine, rows = self.cuts[batch]
            index = order[mine]
            yield Batch(
                weak(mine, index).float() / 255,
                labels[mine],
                index,
                view=None if self.rotation else views[mine],
                names=None if self.rotation else names[mine],
                strong=strong(mine, index) if strong else None,
                rows=rows,
            )

    def _maker(self, order: Tensor, views: Tensor, *, seed: int, epoch: int) -> Maker:
        """What makes the images at some places in an epoch's order, uint8, given their index."""
        degrees: Tensor | None = None
        if self.rotation:
            degrees = draw_turns(len(order), rotation=self.rotation, seed=seed, epoch=epoch)[order]
            degrees = degrees.to(self.images.device)

        def make(places: slice, index: Tensor) -> Tensor:
            images = crop_and_flip(self.images, index, views[places], padding=self.padding)
            return images if degrees is None else turn(images, degrees[places])

        return make

    def _strong(self, order: Tensor, epoch: int) -> Maker:
        """Draw an epoch's strong views; what is returned makes those of some places in its order, in [0, 1]."""
        seed, count = mixed(self.seed, "strong"), len(order)
        views = draw_views(count, padding=self.padding, flip=self.flip, seed=seed, epoch=epoch)
        weak = self._maker(order, views[order].to(self.images.device), seed=seed, epoch=epoch)
        drawn = draw(count, generator=generator(seed, epoch)).take(order)

        def make(places: slice, index: Tensor) -> Tensor:
            return strengthen(weak(places, index), drawn.take(places)).float() / 255

        return make


class ResidentEval(Loader):
    """The images as they are, in order; a rank may find no row in the last batch, but yields it all the same.

    Args:
        images: Shape (samples, height, width, 3), uint8.
        labels: Shape (samples,), int64.
        device: Where to keep the images and make the batches.
        **common: See `Loader`.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, device: torch.device, **common: Any) -> None:
        super().__init__(num_samples=len(labels), **common)
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.index = torch.arange(len(labels), device=device)

    def __iter__(self) -> Iterator[Batch]:
        for batch in range(len(self)):
            mine, rows = self.cuts[batch]
            images = self.images[mine].permute(0, 3, 1, 2).float() / 255
            yield Batch(images, self.labels[mine], self.index[mine], rows=rows)


@dataclass(kw_only=True, eq=False, repr=False)
class ResidentData(ImageData):
    """A data set on the device-resident pipeline.

    Subclasses implement `read`; `Part.images` are uint8, shape (samples, size, size, 3).

    Attributes:
        rotation: Most degrees that training images are turned by at random, either way. Data sets that offer it make
            it a keyword, as in `TinyImageNet`; the others leave images upright.

    Args:
        flip: Whether training images are mirrored at random.
        padding: Zeros on each side of a training image, within which it is cropped at random.

    Raises:
        UserError: If the padding is negative or its offsets do not fit into uint8, or images turn beyond 180 degrees.
    """

    flip: bool
    padding: int

    rotation: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.padding <= 127:
            raise UserError(f"padding={self.padding} is out of range: it must lie in 0 to 127")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"rotation={self.rotation} is out of range: it must lie in 0 to 180 degrees")

    @property
    def num_views(self) -> int | None:
        return None if self.rotation else count_views(padding=self.padding, flip=self.flip)

    @property
    def device_bytes(self) -> int:
        padded = 3 * (self.size + 2 * self.padding) ** 2
        return padded * self.num_samples + int(self._parts[self.evaluated_on].images.numel())

    def fingerprint(self) -> str:
        """A hash of all images, their labels and the augmentation."""
        if self.rotation:
            return super().fingerprint()
        digest = hashlib.sha256(f"{self.padding} {self.flip}".encode())
        for name, part in sorted(self._parts.items()):
            digest.update(f"{name} {tuple(part.images.shape)}".encode())
            digest.update(part.images.numpy().tobytes())
            digest.update(part.labels.numpy().tobytes())
        return digest.hexdigest()

    def train_loader(self, part: Part) -> ResidentTrain:
        """Shuffled, augmented batches."""
        return ResidentTrain(
            part.images,
            part.labels,
            device=self.device,
            padding=self.padding,
            flip=self.flip,
            rotation=self.rotation,
            strong=self.strong_views,
            batch_size=self.batch_size,
            rank=self.rank,
            world=self.world,
            seed=self.seed,
            epoch=self.epoch,
        )

    def eval_loader(self, part: Part) -> ResidentEval:
        """Batches in order, not augmented."""
        return ResidentEval(
            part.images,
            part.labels,
            device=self.device,
            batch_size=self.eval_batch_size,
            rank=self.rank,
            world=self.world,
        )
