"""Large images: read, cropped and resized by worker processes, whose number changes nothing but the speed.

A worker spends most of its time on decoding, which libjpeg-turbo does through torchvision without PIL's detour over
four bytes per pixel; the pixels are the same. What follows stays in bytes and in the layout that the decoder writes,
height x width x channel: the resizing has fast code for that, and networks want it. Only the crop is resized, always
from the whole resolution, since decoding at a fraction of it (PIL's draft mode) would change the pixels. A batch
travels as bytes, a quarter of what floats take, and becomes float32 on the device.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.io import decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from distill.data.loader import Cuts, Loader, TrainLoader
from distill.data.order import epoch_order, mixed
from distill.errors import UserError
from distill.types import Batch

Transform = Callable[[Tensor], Tensor]
Key = tuple[int, int]  # sample and epoch: a persistent worker learns of the epoch from nothing else
Row = tuple[Tensor, int, int]

RESIZE = 256 / 224  # the side before the central crop, in units of the crop


class TrainTransform:
    """A random crop of random area and aspect (Szegedy et al., 2015), resized, and mirrored at random.

    It draws and gives what `v2.RandomResizedCrop` and `v2.RandomHorizontalFlip` do, but these resize the crop as a
    view with gaps, for which torch leaves its fast code: copying the crop first saves a third of the time.

    Args:
        size: Height and width of the result.
        flip: Whether to mirror every other image.
    """

    def __init__(self, size: int, *, flip: bool) -> None:
        self.crop = v2.RandomResizedCrop(size)
        self.size = [size, size]
        self.flip = flip

    def __call__(self, image: Tensor) -> Tensor:
        """Shape (3, height, width), uint8, to (3, size, size)."""
        crop = tvf.crop(image, **self.crop.make_params([image]))
        crop = crop.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        resized: Tensor = tvf.resize(crop, self.size, antialias=True)
        return resized.flip(2) if self.flip and torch.rand(1) < 0.5 else resized


def eval_transform(size: int) -> Transform:
    """The central crop of the image resized by its shorter side."""
    transform: Transform = v2.Compose([v2.Resize(round(size * RESIZE), antialias=True), v2.CenterCrop(size)])
    return transform


def unreadable(path: Path | str, error: Exception) -> str:
    """What a user is told of an image file that cannot be decoded."""
    return f"{path} cannot be read as an image ({error}): replace or remove it"


class Files(Dataset[Row | str]):
    """Image files by sample and epoch.

    An image that cannot be read is answered with a sentence on it: torch would wrap what a worker raises into its
    traceback.

    Args:
        root: Folder that the paths start from.
        paths: Path of each sample, encoded, an array of bytes: Python objects would be copied into every worker.
        labels: Class of each sample, shape (samples,), int64.
        transform: What to do with an image, shape (3, height, width), uint8; may give several views, stacked.
        seed: Of the run.
    """

    def __init__(self, root: Path, paths: Any, labels: Tensor, *, transform: Transform, seed: int) -> None:
        self.root = root
        self.paths = paths
        self.labels = labels
        self.transform = transform
        self.seed = seed

    @staticmethod
    def decode(path: Path) -> Tensor:
        """Pixels of an image file, shape (3, height, width), uint8, in memory height x width x channel.

        Colour JPEGs are torchvision's, everything else is PIL's: other formats, grey and CMYK JPEGs, and damaged ones,
        about which it complains.

        Raises:
            Exception: Of any kind, if it cannot be read: PIL's plugins raise whatever their format makes them.
        """
        with contextlib.suppress(RuntimeError):
            pixels: Tensor = decode_jpeg(torch.from_numpy(np.fromfile(path, dtype=np.uint8)))
            if len(pixels) == 3:
                return pixels
        with Image.open(path) as image:
            pixels = tvf.pil_to_tensor(image.convert("RGB"))
        return pixels

    def __getitem__(self, key: Key) -> Row | str:
        sample, epoch = key
        path = self.root / os.fsdecode(self.paths[sample])
        try:
            pixels = self.decode(path)
        except Exception as error:
            return unreadable(path, error)
        # the generator alone, since torch.manual_seed would also seed the accelerators of a process without workers
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed(self.seed, epoch, sample))
            image = self.transform(pixels)
        return image.movedim(-3, -1), int(self.labels[sample]), sample


def collate(rows: list[Row | str], *, size: int) -> Sequence[Tensor] | str:
    """Images, shape (rows, size, size, 3), labels and index of a batch, or the first complaint in it."""
    for row in rows:
        if isinstance(row, str):
            return row
    if not rows:
        nothing = torch.empty(0, dtype=torch.long)
        return torch.empty(0, size, size, 3, dtype=torch.uint8), nothing, nothing
    batch: list[Tensor] = default_collate(rows)  # a worker's are written where the other process reads them
    return batch


class Plan:
    """This rank's keys of every batch; set before each epoch, since the workers outlive it."""

    def __init__(self, cuts: Cuts) -> None:
        # not the loader itself: in a cycle, ending the workers is left to the garbage collector and takes seconds
        self.cuts = cuts
        self.order = torch.empty(0, dtype=torch.long)
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in range(self.start, len(self.cuts)):
            mine, _ = self.cuts[batch]
            yield [(sample, self.epoch) for sample in self.order[mine].tolist()]


class WorkerLoader(Loader):
    """Batches of image files, made ahead of their use.

    Args:
        files: The images.
        device: Where to put the batches.
        size: Height and width of an image.
        workers: Processes of one thread each; 0 works in this one.
        prefetch: Batches that each worker makes ahead.
        **common: See `Loader` and `TrainLoader`.
    """

    def __init__(
        self, files: Files, *, device: torch.device, size: int, workers: int, prefetch: int, **common: Any
    ) -> None:
        super().__init__(num_samples=len(files.labels), **common)
        self.device = device
        self.plan = Plan(self.cuts)
        self.torch_loader: DataLoader[Row | str] = DataLoader(
            files,
            batch_sampler=self.plan,
            num_workers=workers,
            collate_fn=partial(collate, size=size),
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            generator=torch.Generator(),  # else it draws from, and so moves, the process's own
        )

    @property
    def _iterator(self) -> Any:
        """Lightning ends the worker processes that it finds under this name, torch's own."""
        return self.torch_loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self.torch_loader._iterator = iterator

    def ordered(self, order: Tensor, *, epoch: int, start: int) -> Iterator[Batch]:
        """Batches of an order of samples from the start-th on, on the device, channels-last.

        Raises:
            UserError: At an image that cannot be read.
        """
        self.plan.order, self.plan.epoch, self.plan.start = order, epoch, start
        for batch, content in enumerate(self.torch_loader, start):
            if isinstance(content, str):
                raise UserError(content)
            images, labels, index = (tensor.to(self.device, non_blocking=True) for tensor in content)
            views = images.movedim(-1, -3)
            weak, *strong = (view.float().div_(255) for view in (views.unbind(1) if views.ndim == 5 else (views,)))
            yield Batch(weak, labels, index, strong=strong[0] if strong else None, rows=self.cuts[batch][1])


class WorkerTrain(WorkerLoader, TrainLoader):
    """Shuffled and augmented; `Batch.view` is None, for the views are without number."""

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The epoch's batches from the start-th on."""
        order = epoch_order(self.cuts.num_samples, seed=self.seed, epoch=epoch)
        return self.ordered(order, epoch=epoch, start=start)


class WorkerEval(WorkerLoader):
    """In order; a rank may find no row in the last batch, but yields it all the same."""

    def __iter__(self) -> Iterator[Batch]:
        return self.ordered(torch.arange(self.cuts.num_samples), epoch=0, start=0)
