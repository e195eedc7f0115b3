"""What a run keeps while it goes on: metrics.csv, the best epoch, and the checkpoints `last` and `best`."""

import csv
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from distill.checkpoint import save_atomically
from distill.files import BEST, LAST, METRICS
from distill.module import Distillation
from distill.record import write_text


class Keeper(Checkpoint):
    """Writes to the run's folder after each epoch, within epochs every few minutes, and when it is told to stop.

    A subclass of Lightning's `Checkpoint` because those run last: what they save is complete.

    Args:
        folder: The run's folder.
        minutes: Between checkpoints within an epoch; None for none.
        steps: Optimizer steps between them, instead of or beside the minutes; None for none.
        epochs: Between checkpoints after epochs; the best and the last are saved in any case.
        metrics_csv: Whether metrics.csv is written.
        check_every: Batches between looks at the clock and at whether the loss is finite.
    """

    def __init__(
        self,
        folder: Path,
        *,
        minutes: float | None,
        steps: int | None,
        epochs: int,
        metrics_csv: bool,
        check_every: int,
    ) -> None:
        self.folder = folder
        self.minutes = minutes
        self.steps = steps
        self.epochs = epochs
        self.metrics_csv = metrics_csv
        self.check_every = check_every
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.seconds = 0.0
        self.images_per_second: list[float] = []
        self._since = time.monotonic()
        self._saved = time.monotonic()
        self._whole = False

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "last": self.last,
            "seconds": self.seconds + time.monotonic() - self._since,
            "images_per_second": self.images_per_second,
            "whole": self._whole,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.last = state_dict["best"], state_dict["last"]
        self.seconds = state_dict["seconds"]
        self.images_per_second = state_dict["images_per_second"]
        self._whole = state_dict.get("whole", False)

    # ------------------------------------------------------------------ hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = self._saved = time.monotonic()
        if trainer.is_global_zero:
            cut_back(self.folder / METRICS, epochs=int(self.last.get("epoch", 0)))
            if self._whole and self.best == self.last and (self.folder / LAST).exists():
                link(self.folder / LAST, self.folder / BEST)  # in case it was stopped between the two

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Distillation)
        looks = (batch_idx + 1) % self.check_every == 0
        if looks:
            pl_module.check_finite()
        # gradients of a half-accumulated step are in no checkpoint, and the last batch's is the epoch's own
        if (batch_idx + 1) % pl_module.accumulate or batch_idx + 1 >= trainer.num_training_batches:
            return
        if (self.steps and trainer.global_step % self.steps == 0) or told_to_stop(trainer):
            self._save(trainer, pl_module)
        elif self.minutes is not None and looks:
            late = time.monotonic() - self._saved > 60 * self.minutes
            if trainer.strategy.reduce_boolean_decision(late, all=False):
                self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Distillation)
        row = pl_module.epoch_metrics
        self.last = {"epoch": pl_module.current_epoch + 1, **pl_module.epoch_scores}
        self.images_per_second.append(row["images_per_second"])
        better = not self.best or self.last["top1"] > self.best["top1"]
        if better:
            self.best = self.last
        if trainer.is_global_zero and self.metrics_csv:
            append(self.folder / METRICS, row)
        epoch = pl_module.current_epoch + 1
        if better or epoch % self.epochs == 0 or epoch == trainer.max_epochs or told_to_stop(trainer):
            self._save(trainer, pl_module, whole=True)
        if better and trainer.is_global_zero:
            link(self.folder / LAST, self.folder / BEST)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.monotonic() - self._since
        self._since = time.monotonic()

    def _save(self, trainer: pl.Trainer, pl_module: Distillation, *, whole: bool = False) -> None:
        pl_module.check_finite()
        self._whole = whole  # whether it holds the weights that the last scores are of
        trainer.save_checkpoint(self.folder / LAST)
        self._saved = time.monotonic()


def told_to_stop(trainer: pl.Trainer) -> bool:
    """Whether SIGTERM has come; of several ranks none can save alone."""
    return trainer.world_size == 1 and trainer.received_sigterm


def link(source: Path, target: Path) -> None:
    """Make `target` the file that `source` is now; files are replaced, never written into, so a link will do."""

    def write(path: Path) -> None:
        try:
            os.link(source, path)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, path)

    save_atomically(target, write)


def append(path: Path, row: dict[str, float]) -> None:
    """Add one epoch to metrics.csv; its header is that of the first."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def cut_back(path: Path, *, epochs: int) -> None:
    """Keep the rows of the first `epochs` epochs: what a checkpoint does not hold is trained and written again."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines[1:] if line.endswith("\n") and float(line.split(",", 1)[0]) <= epochs]
    if not kept:
        path.unlink()
    elif len(kept) < len(lines) - 1:
        write_text(path, lines[0] + "".join(kept))
