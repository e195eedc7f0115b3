"""Large images: read, cropped and resized by worker processes, whose number changes nothing but the speed."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
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


def train_transform(size: int, *, flip: bool) -> Transform:
    """A random crop of random area and aspect (Szegedy et al., 2015), resized, and mirrored at random."""
    crop = v2.RandomResizedCrop(size, antialias=True)
    transform: Transform = v2.Compose([crop, v2.RandomHorizontalFlip()]) if flip else crop
    return transform


def eval_transform(size: int) -> Transform:
    """The central crop of the image resized by its shorter side."""
    transform: Transform = v2.Compose([v2.Resize(round(size * RESIZE), antialias=True), v2.CenterCrop(size)])
    return transform


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

    def __getitem__(self, key: Key) -> Row | str:
        sample, epoch = key
        path = self.root / os.fsdecode(self.paths[sample])
        try:
            with Image.open(path) as image:
                pixels = tvf.pil_to_tensor(image.convert("RGB"))
        except Exception as error:  # PIL's plugins raise whatever their format makes them
            return f"{path} cannot be read as an image ({error}): replace or remove it"
        # the generator alone, since torch.manual_seed would also seed the accelerators of a process without workers
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed(self.seed, epoch, sample))
            return self.transform(pixels), int(self.labels[sample]), sample


def collate(rows: Sequence[Row | str], *, size: int) -> tuple[Tensor, Tensor, Tensor] | str:
    """Images, labels and index of a batch, which may be empty, or the first complaint in it."""
    good: list[Row] = []
    for row in rows:
        if isinstance(row, str):
            return row
        good.append(row)
    if not good:
        nothing = torch.empty(0, dtype=torch.long)
        return torch.empty(0, 3, size, size, dtype=torch.uint8), nothing, nothing
    images, labels, index = zip(*good, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.tensor(index)


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
        workers: Processes; 0 works in this one.
        **common: See `Loader` and `TrainLoader`.
    """

    def __init__(self, files: Files, *, device: torch.device, size: int, workers: int, **common: Any) -> None:
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
            # bytes travel and change their layout, floats do not
            weak, *strong = (
                view.contiguous(memory_format=torch.channels_last).float() / 255
                for view in (images.unbind(1) if images.ndim == 5 else (images,))
            )
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
