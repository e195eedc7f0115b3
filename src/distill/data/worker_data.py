"""Data sets of large image files, on the worker pipeline."""

from dataclasses import dataclass
from pathlib import Path

from distill.data.base import ImageData, Part
from distill.data.strong import TwoViews
from distill.data.workers import Files, TrainTransform, Transform, WorkerEval, WorkerTrain, eval_transform
from distill.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class WorkerData(ImageData):
    """A data set whose images stay files: cropped at random area and aspect, and resized, as ImageNet's usually are.

    Subclasses implement `read`; `Part.images` are the files' paths within `root`, encoded, an array of bytes.

    Args:
        flip: Whether training images are mirrored at random.
        workers: Processes that read images; 0 reads in this one.
        prefetch: Batches that each of them makes ahead.

    Raises:
        UserError: If there are less than 0 workers or 1 batch ahead.
    """

    flip: bool
    workers: int
    prefetch: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise UserError(f"workers={self.workers} is out of range: it must be at least 0")
        if self.prefetch < 1:
            raise UserError(f"prefetch={self.prefetch} is out of range: it must be at least 1")

    def train_loader(self, part: Part) -> WorkerTrain:
        """Shuffled, augmented batches."""
        transform: Transform = TrainTransform(self.size, flip=self.flip)
        if self.strong_views:
            transform = TwoViews(transform)
        return WorkerTrain(
            Files(Path(self.root), part.images, part.labels, transform=transform, seed=self.seed),
            device=self.device,
            size=self.size,
            workers=self.workers,
            prefetch=self.prefetch,
            batch_size=self.batch_size,
            rank=self.rank,
            world=self.world,
            seed=self.seed,
            epoch=self.epoch,
        )

    def eval_loader(self, part: Part) -> WorkerEval:
        """Batches in order, centrally cropped."""
        transform = eval_transform(self.size)
        return WorkerEval(
            Files(Path(self.root), part.images, part.labels, transform=transform, seed=self.seed),
            device=self.device,
            size=self.size,
            workers=self.workers,
            prefetch=self.prefetch,
            batch_size=self.eval_batch_size,
            rank=self.rank,
            world=self.world,
        )
