"""What vision transformers are trained on: crops of random size, RandAugment and erased rectangles, on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from distill.data import crops, randaugment
from distill.data.base import ImageData, Part
from distill.data.cifar100 import CIFAR100
from distill.data.loader import TrainLoader
from distill.data.order import epoch_order, generator, mixed
from distill.data.resident import ResidentData
from distill.data.strong import apply
from distill.errors import UserError
from distill.types import Batch

STARTS = 2**20  # places in the row of noise at which an erased rectangle may begin


class Draw(NamedTuple):
    """What is done to each of some images, in this order; on the CPU.

    Attributes:
        boxes: Crop of each, (top, left, height, width), shape (images, 4), int64.
        mirrored: Whether it is mirrored, shape (images,).
        operations: See `randaugment.draw`.
        magnitudes: Of each.
        erased: See `crops.draw_erasures`.
        starts: Where the noise of each begins, shape (images,), int64.
    """

    boxes: Tensor
    mirrored: Tensor
    operations: Tensor
    magnitudes: Tensor
    erased: Tensor
    starts: Tensor

    def take(self, rows: slice | Tensor) -> Self:
        """That of some of the images."""
        return type(self)(*(tensor[rows] for tensor in self))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """timm's training transform of DeiT and its successors, a batch at a time.

    Its colour jitter is not here: timm leaves it out wherever RandAugment is on.

    Args:
        size: Height and width of the result.
        scale: Least and largest part of the image that a crop takes.
        ratio: Least and largest width of a crop over its height.
        flip: Whether to mirror every other image, at random.
        magnitude: Of RandAugment, 0 to 10.
        deviation: Standard deviation of that.
        erase: Probability that a rectangle of an image becomes noise.
        mean: Of the noise and of what lies outside an image, per channel of [0, 1].
        std: Of the noise.

    Raises:
        UserError: If a number is out of its range.
    """

    size: int
    scale: Sequence[float]
    ratio: Sequence[float]
    flip: bool
    magnitude: float
    deviation: float
    erase: float
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        right = {
            "crop_size must be at least 1": self.size >= 1,
            "crop_scale must be two numbers, 0 < first <= second <= 1": _range(self.scale) and self.scale[1] <= 1,
            "crop_ratio must be two numbers, 0 < first <= second": _range(self.ratio),
            "magnitude must lie in 0 to 10": 0 <= self.magnitude <= randaugment.TOP,
            "magnitude_std must be at least 0": self.deviation >= 0,
            "erase must lie in 0 to 1": 0 <= self.erase <= 1,
        }
        if wrong := [said for said, holds in right.items() if not holds]:
            raise UserError(f"data.{wrong[0]}")

    def draw(self, images: int, *, side: int, seed: int, epoch: int) -> Draw:
        """An epoch's draw for every sample.

        Args:
            images: How many.
            side: Of an image, in px.
            seed: Of the run.
            epoch: From 0.
        """

        def of(what: str) -> torch.Generator:
            return generator(seed, epoch, what)

        boxes, _ = crops.draw_boxes(
            images, side=side, area=self.scale, ratio=self.ratio, whole=True, generator=of("box")
        )
        operations, magnitudes = randaugment.draw(
            images, magnitude=self.magnitude, deviation=self.deviation, generator=of("operations")
        )
        return Draw(
            boxes=boxes,
            mirrored=(torch.rand(images, generator=of("mirror")) < 0.5) & self.flip,
            operations=operations,
            magnitudes=magnitudes,
            erased=crops.draw_erasures(images, side=self.size, probability=self.erase, generator=of("erase")),
            starts=torch.randint(STARTS, (images,), generator=of("noise")),
        )

    def noise(self, seed: int) -> Tensor:
        """A row of standard normal numbers, long enough for an image that begins at any of the starts."""
        return torch.randn(STARTS + 3 * self.size**2, generator=generator(seed, "noise"))

    def __call__(self, images: Tensor, drawn: Draw, noise: Tensor) -> Tensor:
        """Apply what was drawn, without waiting for the device.

        An image's result depends on what was drawn for it alone, not on what else is in the batch.

        Args:
            images: Shape (batch, 3, side, side), uint8, on any device.
            drawn: For each of them.
            noise: See `noise`, on the same device.

        Returns:
            Shape (batch, 3, size, size), channels-last in memory, in [0, 1] but for the noise.
        """
        device = images.device
        x = crops.resized_crops(images, drawn.boxes.to(device, non_blocking=True), size=self.size)
        mirrored = drawn.mirrored.to(device, non_blocking=True)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        table = randaugment.filled([min(255, round(255 * m)) for m in self.mean])
        for operations, magnitudes in zip(drawn.operations.T, drawn.magnitudes.T, strict=True):
            x = apply(x, table, operations, magnitudes)
        x = x / 255
        rows = drawn.erased[:, 2].nonzero().flatten()  # on the CPU, which does not wait
        if len(rows):
            boxes, starts = (t[rows].to(device, non_blocking=True) for t in (drawn.erased, drawn.starts))
            rows = rows.to(device, non_blocking=True)
            erased = crops.erase(x.index_select(0, rows), boxes, noise, starts, mean=self.mean, std=self.std)
            x.index_copy_(0, rows, erased)
        return x.contiguous(memory_format=torch.channels_last)


def _range(limits: Sequence[float]) -> bool:
    return len(limits) == 2 and 0 < limits[0] <= limits[1]


class AugmentedTrain(TrainLoader):
    """Shuffled and augmented batches, made where the images lie; their views have no names.

    Args:
        images: Shape (samples, side, side, 3), uint8.
        labels: Shape (samples,), int64.
        device: Where to keep the images and make the batches.
        augment: What to do with them.
        **common: See `TrainLoader`.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, device: torch.device, augment: Augmentation, **common: Any
    ) -> None:
        super().__init__(num_samples=len(labels), **common)
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.augment = augment
        self.noise = augment.noise(mixed(self.seed, "augmented")).to(device)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The epoch's batches from the start-th on."""
        count, device = len(self.labels), self.images.device
        order = epoch_order(count, seed=self.seed, epoch=epoch)
        drawn = self.augment.draw(count, side=self.images.shape[1], seed=self.seed, epoch=epoch).take(order)
        order = order.to(device)
        for batch in range(start, len(self)):
            mine, rows = self.cuts[batch]
            index = order[mine]
            images = self.augment(self.images[index].permute(0, 3, 1, 2), drawn.take(mine), self.noise)
            yield Batch(images, self.labels[index], index, rows=rows)


@dataclass(kw_only=True, eq=False, repr=False)
class AugmentedData(ResidentData):
    """A resident data set whose training images go through `Augmentation` instead of padded crops.

    Training images are `crop_size` px large, all others `size`, as they are on disk. A network without an input size of
    its own looks at either kind in `size` px.

    Args:
        crop_size: Height and width of a training image.
        crop_scale: See `Augmentation`, as the rest.
        crop_ratio: Likewise.
        magnitude: Likewise.
        magnitude_std: Likewise.
        erase: Likewise.
        fill_mean: Likewise.
        fill_std: Likewise.
    """

    padding: int = field(init=False, default=0)  # crops lie within the images
    crop_size: int
    crop_scale: Sequence[float]
    crop_ratio: Sequence[float]
    magnitude: float
    magnitude_std: float
    erase: float
    fill_mean: Sequence[float]
    fill_std: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.augment = Augmentation(
            size=self.crop_size,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            flip=self.flip,
            magnitude=self.magnitude,
            deviation=self.magnitude_std,
            erase=self.erase,
            mean=self.fill_mean,
            std=self.fill_std,
        )

    @property
    def train_size(self) -> int:
        return self.crop_size

    @property
    def num_views(self) -> None:
        return None

    def fingerprint(self) -> str:
        return ImageData.fingerprint(self)

    def train_loader(self, part: Part) -> AugmentedTrain:  # type: ignore[override]
        """Shuffled, augmented batches.

        Raises:
            UserError: If a strong view is asked for beside.
        """
        if self.strong_views:
            raise UserError(
                "this distiller reads a second, strongly augmented view of each image, which this data set does not"
                " make: all of its images are strongly augmented; choose data=cifar100, for instance"
            )
        return AugmentedTrain(
            part.images,
            part.labels,
            device=self.device,
            augment=self.augment,
            batch_size=self.batch_size,
            rank=self.rank,
            world=self.world,
            seed=self.seed,
            epoch=self.epoch,
        )


@dataclass(kw_only=True, eq=False, repr=False)
class AugmentedCIFAR100(AugmentedData, CIFAR100):
    """CIFAR-100 through `Augmentation`."""
