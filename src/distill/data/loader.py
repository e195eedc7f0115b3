"""What the loaders of both pipelines share: global batches, a rank's rows of them, and a position to resume from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distill.data.order import shares
from distill.errors import UserError
from distill.types import Batch


@dataclass(frozen=True)
class Cuts:
    """Where the batches of an epoch begin and end; the last may be smaller, none is dropped.

    Attributes:
        num_samples: Samples in the data set.
        batch_size: Rows of a batch over all ranks.
        rank: This process.
        world: Number of processes.
    """

    num_samples: int
    batch_size: int
    rank: int
    world: int

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __getitem__(self, batch: int) -> tuple[slice, tuple[int, ...]]:
        """Where this rank's rows of a global batch lie in the epoch's order, and `Batch.rows`."""
        first = batch * self.batch_size
        rows = shares(min(self.batch_size, self.num_samples - first), world=self.world)
        start = first + sum(rows[: self.rank])
        return slice(start, start + rows[self.rank]), rows if self.world > 1 else ()


class Loader(ABC):
    """Yields this rank's rows of every global batch.

    Args:
        num_samples: Samples in the data set.
        batch_size: Rows of a batch over all ranks.
        rank: This process.
        world: Number of processes.

    Raises:
        UserError: If a batch has no rows.
    """

    def __init__(self, *, num_samples: int, batch_size: int, rank: int, world: int) -> None:
        if batch_size < 1:
            raise UserError(f"a batch of {batch_size} images was asked for; the batch size must be at least 1")
        self.cuts = Cuts(num_samples, batch_size, rank, world)

    def __len__(self) -> int:
        return len(self.cuts)

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...


class TrainLoader(Loader):
    """A loader that can be resumed in the middle of an epoch.

    Lightning loads the state before it asks for an iterator, asks for iterators that it never draws from, and never
    exhausts one; so the position is reset when an iterator is asked for, unless a loaded state still waits for its
    first batch, and the epoch is read when that batch is drawn.

    Args:
        num_samples: Samples in the training set.
        batch_size: Rows of a batch over all ranks.
        rank: This process.
        world: Number of processes.
        seed: Of order and augmentation.
        epoch: Says which epoch it is.

    Raises:
        UserError: If some batch has fewer rows than there are ranks.
    """

    def __init__(
        self, *, num_samples: int, batch_size: int, rank: int, world: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        super().__init__(num_samples=num_samples, batch_size=batch_size, rank=rank, world=world)
        smallest = num_samples % batch_size or batch_size
        if smallest < world:
            raise UserError(
                f"{world} devices cannot share a batch of {smallest} rows, which {num_samples} training images in "
                f"global batches of {batch_size} leave: choose another batch size or at most {smallest} devices"
            )
        self.seed = seed
        self.epoch = epoch
        self._position = 0
        self._position_epoch: int | None = None
        self._loaded = False

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The epoch's batches from the start-th on."""

    def __iter__(self) -> Iterator[Batch]:
        if not self._loaded:
            self._position, self._position_epoch = 0, None
        return self._draw()

    def _draw(self) -> Iterator[Batch]:
        epoch = self.epoch()
        # a state saved after an epoch's last batch, be it the last by `limit_train_batches`, begins the next epoch
        if self._position_epoch not in (None, epoch) or self._position >= len(self):
            self._position = 0
        self._position_epoch, self._loaded = epoch, False
        for batch in self.batches(epoch, self._position):
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int | None]:
        """Batches handed out, and in which epoch (None before the first batch)."""
        return {"position": self._position, "epoch": self._position_epoch}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue after `state["position"]` batches of its epoch; another epoch begins at its first batch."""
        self._position, self._position_epoch = state["position"] or 0, state.get("epoch")
        self._loaded = True
