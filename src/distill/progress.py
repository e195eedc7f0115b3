"""One bar for the whole run: loss terms, accuracy, images per second, time left."""

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm.auto import tqdm

from distill.module import Distillation


class Progress(ProgressBar):
    """A bar in a terminal, one line per epoch elsewhere.

    The terms are read from the device every `every` batches only: reading them waits for it.
    """

    def __init__(self, *, every: int) -> None:
        super().__init__()
        self.every = every
        self.bar: tqdm[Any] | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._enabled and trainer.is_global_zero and sys.stderr.isatty():
            per_epoch = int(trainer.num_training_batches)
            done = trainer.current_epoch * per_epoch + trainer.fit_loop.epoch_loop.batch_progress.current.ready
            total = per_epoch * (trainer.max_epochs or 1)
            self.bar = tqdm(total=total, initial=done, unit="batch", dynamic_ncols=True, smoothing=0.1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is None:
            return
        self.bar.update()
        if (batch_idx + 1) % self.every == 0:
            assert isinstance(pl_module, Distillation)
            self._describe(trainer, pl_module, pl_module.meter.compute_here())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Distillation)
        if not (self._enabled and trainer.is_global_zero):
            return
        row = pl_module.epoch_metrics
        split = pl_module.split
        terms = "  ".join(f"{k.removeprefix('train/')} {v:.3f}" for k, v in row.items() if k.startswith("train/"))
        line = (
            f"epoch {row['epoch']:.0f}/{trainer.max_epochs}  {split} top1 {row[f'{split}/top1']:.2f}"
            f"  top5 {row[f'{split}/top5']:.2f}  train: {terms}"
            f"  lr {row['lr']:.2g}  {row['images_per_second']:,.0f} images/s"
        )
        if self.bar is None:
            print(line, flush=True)
        else:
            self.bar.write(line)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _describe(self, trainer: pl.Trainer, module: Distillation, means: dict[str, float]) -> None:
        assert self.bar is not None
        self.bar.set_description_str(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)
        texts = {name: f"{value:.3f}" for name, value in means.items() if name != "top1"}
        texts["top1"] = f"{means['top1']:.1f}"
        if module.epoch_scores:
            texts[module.split] = f"{module.epoch_scores['top1']:.2f}"
        texts["img/s"] = f"{module.training_rate():,.0f}"
        self.bar.set_postfix(texts, refresh=False)


class StepLog(pl.Callback):
    """Sends loss terms, training accuracy and learning rate of the epoch so far to the loggers."""

    def __init__(self, *, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Distillation)
        if (batch_idx + 1) % self.every or not trainer.is_global_zero:
            return
        values = {f"step/{name}": value for name, value in pl_module.meter.compute_here().items()}
        values["step/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        values["step/images_per_second"] = pl_module.training_rate()
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
