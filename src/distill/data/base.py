"""What every data set is to the rest of the system."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from distill.data.loader import Loader, TrainLoader
from distill.data.order import balanced_split
from distill.errors import UserError
from distill.types import Batch


@dataclass(frozen=True)
class Part:
    """Images of one purpose and their classes.

    Attributes:
        images: What the pipeline makes batches of; anything that an index array selects rows of.
        labels: Class of each image, shape (samples,), int64.
    """

    images: Any
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor) -> Self:
        """The images at some positions, which from then on count from 0."""
        # numpy would take a tensor of one position for a scalar
        return type(self)(self.images[positions.numpy()], self.labels[positions])


@dataclass(kw_only=True, eq=False, repr=False)
class ImageData(pl.LightningDataModule, ABC):
    """A data set that yields `Batch`, sharded by its own loaders: needs `Trainer(use_distributed_sampler=False)`.

    Subclasses implement `read` and the two loaders of their pipeline; a field is a keyword of the constructor, so that
    the signature of every data set shows all of them. After `setup`:

    Attributes:
        labels: Classes of the training images in use, shape (num_samples,), int64; `Batch.index` counts in them.
        num_samples: How many these are.
        class_names: In the order of the labels; empty where the data set has none.
        evaluated_on: What `val_dataloader` yields: "holdout", or "test" where nothing is held out.
        strong_views: Whether training batches hold a strong view beside; to be set before `train_dataloader`.

    Args:
        root: Folder of the data.
        num_classes: Classes the labels may name.
        mean: Of each channel of [0, 1], for networks that have no habit of their own.
        std: Likewise.
        size: Height and width of the images of a batch.
        holdout: Images to take from the training set for validation, class-balanced and independent of the seed.
        batch_size: Rows of a training batch over all ranks.
        eval_batch_size: Rows of an evaluation batch over all ranks.
        seed: Of order and augmentation.
    """

    root: str
    num_classes: int
    mean: Sequence[float]
    std: Sequence[float]
    size: int
    holdout: int
    batch_size: int
    eval_batch_size: int
    seed: int

    labels: Tensor = field(init=False)
    num_samples: int = field(init=False)
    class_names: list[str] = field(init=False, default_factory=list)
    strong_views: bool = field(init=False, default=False)
    _parts: dict[str, Part] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.mean, self.std = tuple(self.mean), tuple(self.std)

    @abstractmethod
    def read(self) -> tuple[Part, Part]:
        """Read training set and test set, and set `class_names`."""

    @abstractmethod
    def train_loader(self, part: Part) -> TrainLoader:
        """Shuffled, augmented batches."""

    @abstractmethod
    def eval_loader(self, part: Part) -> Loader:
        """Batches in order, not augmented; `Batch.index` is the position in this part."""

    @property
    def evaluated_on(self) -> Literal["holdout", "test"]:
        return "holdout" if self.holdout else "test"

    @property
    def num_views(self) -> int | None:
        """Different views of a training image that the augmentation draws from; None: without number."""
        return None

    def fingerprint(self) -> str:
        """What tells this data set, as it is read here, from every other; only of use where views have names."""
        raise NotImplementedError(f"{type(self).__name__} has no finite set of views")

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def device(self) -> torch.device:
        """Where the loaders put their batches."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def epoch(self) -> int:
        """The epoch under way, from 0."""
        return self.trainer.current_epoch if self.trainer else 0

    def setup(self, stage: str | None = None) -> None:
        """Read and check once, whatever the stage, and set the holdout apart.

        Raises:
            UserError: If a label lies outside the classes or the holdout outside the training set.
        """
        if self._parts:
            return
        train, test = self.read()
        for part in (train, test):
            self._check_labels(part.labels)
        self._check_holdout(train.labels)
        self._parts = {"train": train, "test": test}
        if self.holdout:
            kept, held = balanced_split(train.labels, self.holdout)
            self._parts |= {"train": train.take(kept), "holdout": train.take(held)}
        self.labels = self._parts["train"].labels
        self.num_samples = len(self.labels)

    def _check_labels(self, labels: Tensor) -> None:
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise UserError(
                f"{type(self).__name__} holds the label {int(wrong.max())}, but num_classes is {self.num_classes}, "
                f"which allows 0 to {self.num_classes - 1}: set num_classes to the number of classes"
            )

    def _check_holdout(self, labels: Tensor) -> None:
        most = len(labels) - int(labels.bincount().count_nonzero())
        if not 0 <= self.holdout <= most:
            raise UserError(
                f"holdout={self.holdout} is out of range: of {len(labels)} training images 0 to {most} can be held "
                "out, so that every class keeps one"
            )

    def train_dataloader(self) -> TrainLoader:
        """This rank's training batches."""
        return self.train_loader(self._parts["train"])

    def plain_dataloader(self) -> Loader:
        """This rank's batches of the training images, in order and not augmented."""
        return self.eval_loader(self._parts["train"])

    def val_dataloader(self) -> Loader:
        """This rank's batches of what `evaluated_on` says."""
        return self.eval_loader(self._parts[self.evaluated_on])

    def test_dataloader(self) -> Loader:
        """This rank's batches of the test set."""
        return self.eval_loader(self._parts["test"])

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning's own mover writes into the batch, which is frozen."""
        return batch.to(device)
