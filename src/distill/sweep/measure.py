"""What a run costs on this device: some of its steps, really trained, in a folder that is thrown away."""

import copy
import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from distill import record
from distill.answers import Answers
from distill.kept import KeptTeacher
from distill.progress import Progress
from distill.run.check import check
from distill.run.config import Config, world_of
from distill.run.parts import Prepared, prepare
from distill.run.train import assemble
from distill.scores import evaluate

WARM_UP = 10  # steps before the measured ones: compiling, choosing kernels, filling caches
EVALUATED = 4  # batches
WORTH_IT = 20  # runs that are shorter than so many measurements are not measured


@dataclass(frozen=True)
class Cost:
    """Seconds that the parts of a run take.

    Attributes:
        start: Until its steps are regular, the teacher's evaluation included.
        batch: Of training, on all its devices.
        known: The same where the teacher's answers are known.
        evaluation: After each epoch.
        batches: Of an epoch.
        views: Of each image; None if they are without number.
        device: Its name.
    """

    start: float
    batch: float
    known: float
    evaluation: float
    batches: int
    views: int | None
    device: str


class _Stopwatch(pl.Callback):
    """Times an epoch of a few steps and its evaluation.

    Attributes:
        began: When the measured steps began, in seconds of `time.perf_counter`.
        batch: Seconds of one of them.
        evaluation: Seconds of the evaluation.
    """

    def __init__(self, device: torch.device, batches: int) -> None:
        self.device = device
        self.batches = batches
        self.warm = min(WARM_UP, batches - 1)
        self.began = self.batch = self.evaluation = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.warm:
            self.began = self._now()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.batches:
            self.batch = (self._now() - self.began) / (self.batches - self.warm)

    def on_validation_start(self, *_: Any) -> None:
        self.evaluation = self._now()

    def on_validation_end(self, *_: Any) -> None:
        self.evaluation = self._now() - self.evaluation


class _AllKnown(Answers):
    """A table in which every answer stands, of zeros: for the time it takes, not for what it says."""

    def __init__(self, classes: int) -> None:
        super().__init__(torch.zeros(1, classes, dtype=torch.float16), torch.zeros(1, dtype=torch.int32))

    def read(self, names: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows.expand(len(names), -1).clone(), torch.ones(len(names), dtype=torch.bool)


def measure(config: Config, *, steps: int, epochs: int) -> Cost | int:
    """Train some steps of a run.

    Args:
        config: Of the run.
        steps: To measure.
        epochs: That all runs of its kind have before them.

    Returns:
        What they cost; the number of batches if there are too few to be worth it.

    Raises:
        UserError: As a run does.
    """
    devices, keep = config["trainer"], (config.get("teacher") or {}).get("keep", "off") != "off"
    config = _alone(config)
    check(config)
    limit, least = config["trainer"].get("limit_train_batches"), WORTH_IT * (steps + WARM_UP)
    if type(limit) is int and limit * epochs < least:
        return limit * epochs
    began = time.perf_counter()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts = prepare(config, folder, measured=False)
        batches = _limited(len(parts.data.train_dataloader()), config["trainer"].get("limit_train_batches"))
        if batches * epochs < least:
            return batches * epochs
        few = min(steps + WARM_UP, batches)
        teacher = _teacher_seconds(parts)
        watch = _fit(config, parts, folder, few)
        known = watch.batch
        if keep and parts.asked is not None:
            answered = KeptTeacher(parts.asked, _AllKnown(parts.data.num_classes))
            known = _fit(config, replace(prepare(config, folder, measured=False), asked=answered), folder, few).batch
        world = world_of(devices, parts.device) * devices["num_nodes"]
        evaluated = _limited(len(parts.data.val_dataloader()), config["trainer"].get("limit_val_batches"))
        return Cost(
            start=watch.began - began + teacher,
            batch=watch.batch / world,
            known=known / world,
            evaluation=watch.evaluation * max(1.0, evaluated / EVALUATED) / world,
            batches=batches,
            views=parts.data.num_views,
            device=record.device_name(parts.device),
        )


def _alone(config: Config) -> Config:
    """The run on one device, which leaves nothing behind."""
    config = copy.deepcopy(config)
    config["trainer"] |= {"devices": 1, "strategy": "auto", "num_nodes": 1}
    config["logger"] = {"metrics_csv": False}
    config["checkpoint"] = {"epochs": 1, "minutes": None, "steps": None}
    if config.get("teacher"):
        config["teacher"]["keep"] = "off"
    return config


def _limited(batches: int, limit: float | None) -> int:
    """Batches of an epoch, of which a user may want fewer: a number of them, or a share."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _teacher_seconds(parts: Prepared) -> float:
    """What the teacher's evaluation takes, once in a run."""
    if parts.asked is None:
        return 0.0
    loader = parts.data.val_dataloader()
    few = list(itertools.islice(iter(loader), EVALUATED))
    began = time.perf_counter()
    evaluate(
        parts.asked,
        few,
        num_classes=parts.data.num_classes,
        device=parts.device,
        precision=parts.precision,
    )
    return (time.perf_counter() - began) * len(loader) / len(few)


def _fit(config: Config, parts: Prepared, folder: Path, batches: int) -> _Stopwatch:
    """Train so many batches, and evaluate after them."""
    limited = config["trainer"] | {"limit_train_batches": batches, "limit_val_batches": EVALUATED}
    run = assemble({**config, "trainer": limited}, folder, parts)
    run.trainer.fit_loop.max_epochs = 1
    watch = _Stopwatch(parts.device, batches)
    trainer: Any = run.trainer
    trainer.callbacks = [*(c for c in trainer.callbacks if not isinstance(c, Progress)), watch]
    run.trainer.fit(run.module, datamodule=parts.data)
    return watch
