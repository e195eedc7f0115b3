"""The training loop's half of a run: networks, method, optimizer, scores. Knows no method by name."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from distill.distillers import Distiller
from distill.errors import UserError
from distill.meter import Meter
from distill.models.network import Network
from distill.numerics import mix, reseed
from distill.scores import Scores
from distill.types import Batch, Output, Spec, Step


class Distillation(pl.LightningModule):
    """A student that learns from a frozen teacher by a method.

    The teacher is no submodule: it is absent from checkpoints, DDP neither wraps nor broadcasts it, and nothing that
    walks over this module can change it.

    Args:
        student: The network to train.
        teacher: A frozen network to ask, or None.
        deployed: What is evaluated and exported: the student, or a composite of which it is a part.
        distiller: The method.
        spec: What the method was built from.
        optimizer: Builds an optimizer from the parameters that require a gradient.
        schedule: Factor of the learning rate over fractional epochs.
        accumulate: Micro-batches per optimizer step.
        seed: The run's.
        split: What the scores are measured on, "test" or "holdout": the prefix of their names.
        teacher_predictions: The teacher's classes for every sample of that split, shape (samples,), if known.
    """

    def __init__(
        self,
        *,
        student: Network,
        teacher: Network | None,
        deployed: nn.Module,
        distiller: Distiller,
        spec: Spec,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[float], float],
        accumulate: int,
        seed: int,
        split: str,
        teacher_predictions: Tensor | None,
    ) -> None:
        super().__init__()
        self.student = student
        self.distiller = distiller
        # in a tuple, into which nn.Module does not look
        self._unregistered = (teacher, deployed)
        self.spec = spec
        self.optimizer_from = optimizer
        self.schedule = schedule
        self.accumulate = accumulate
        self.seed = seed
        self.split = split
        self.teacher_predictions = teacher_predictions
        self.scores = Scores(spec.num_classes)
        self.meter = Meter()
        self.epoch_metrics: dict[str, float] = {}
        self.epoch_scores: dict[str, float] = {}
        self._clock = (0.0, 0)
        self._rate = self._lr = 0.0
        self._step: Step | None = None
        self._apart: tuple[Tensor, Tensor] | None = None
        # DDP would overwrite them from rank 0 at each forward; they start equal and see the same gathered rows
        norms = {id(b) for m in distiller.modules() if isinstance(m, _BatchNorm) for b in m.buffers()}
        self._ddp_params_and_buffers_to_ignore = [
            f"distiller.{name}" for name, buffer in distiller.named_buffers() if id(buffer) not in norms
        ]

    @property
    def teacher(self) -> Network | None:
        """The frozen teacher, in the form that training asks."""
        return self._unregistered[0]

    @property
    def deployed(self) -> nn.Module:
        """What is evaluated and exported."""
        return self._unregistered[1]

    # ------------------------------------------------------------------ one step

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.teacher.to(self.device)
        if self.teacher_predictions is not None:
            self.teacher_predictions = self.teacher_predictions.to(self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # checkpoints hold no global random state: everything random in a step is a function of where it stands
        reseed(mix(self.seed, "step", self.current_epoch, batch_idx, self.global_rank), self.device)
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the method's terms, weighed by this rank's share of the optimizer step's rows."""
        student, teacher = self.distiller.observe(self.student, self.teacher, batch)
        step = Step(batch, student, teacher, epoch=self.current_epoch + 1, step=self.global_step)
        terms = self.distiller(step)
        self._step = step
        self.meter.update(terms, student.logits, batch.labels)
        loss: Tensor = torch.stack(list(terms.values())).sum()
        weight = self._weight(batch, batch_idx)
        if hasattr(self.trainer.optimizers[0], "backward_apart"):
            task, distillation = self._split(terms)
            share = weight / self.accumulate  # Lightning divides by the latter what is returned
            self._apart = (task * share, distillation * share)
        return loss if weight == 1 else loss * weight

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The gradient of the loss, or those of its two parts where the optimizer asks for them, as DOT does."""
        if self._apart is None:
            super().backward(loss, *args, **kwargs)
            return
        optimizer: Any = self.trainer.optimizers[0]
        optimizer.backward_apart(*self._apart)
        self._apart = None

    def _split(self, terms: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The task term, and the sum of the others."""
        others = [term for name, term in terms.items() if name != "ce"]
        if "ce" not in terms or not others:
            optimizer, method = type(self.trainer.optimizers[0]).__name__, type(self.distiller).__name__
            raise UserError(
                f"{optimizer} weighs cross-entropy (ce) against other terms, and {method} has only {', '.join(terms)}:"
                " choose optimizer=sgd, another distiller, or a distiller.ce_weight above 0 where it has one."
            )
        return terms["ce"], torch.stack(others).sum()

    def _weight(self, batch: Batch, batch_idx: int) -> float:
        """Share of the step's rows, undoing DDP's mean over ranks and Lightning's over micro-batches."""
        window = batch_idx // self.accumulate
        total = min(self.spec.batch_size, self.spec.num_samples - window * self.spec.batch_size)
        return len(batch) * max(1, len(batch.rows)) * self.accumulate / total

    def on_after_backward(self) -> None:
        # before any callback of the batch, so that a checkpoint taken there holds the state after this batch
        if self._step is not None:
            with torch.no_grad():
                self.distiller.update(self._step)
            self._step = None

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = self.optimizer_from(parameters)
        if hasattr(optimizer, "backward_apart"):
            self._refuse_what_needs_one_gradient(type(optimizer).__name__)
        steps = -(-self.spec.num_samples // self.spec.batch_size)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _refuse_what_needs_one_gradient(self, optimizer: str) -> None:
        if self.trainer.precision == "16-mixed":
            raise UserError(
                f"{optimizer} takes two gradients, of which trainer.precision=16-mixed would unscale one: choose"
                " bf16-mixed or 32-true."
            )
        if self.trainer.gradient_clip_val:
            raise UserError(
                f"{optimizer} takes two gradients, of which trainer.gradient_clip_val would clip one: set it to null."
            )

    # ------------------------------------------------------------------ an epoch

    def on_train_epoch_start(self) -> None:
        self.meter.reset()
        self._clock = (time.perf_counter(), 0)

    def on_train_start(self) -> None:
        # a run resumed within an epoch has no epoch start
        self._clock = (time.perf_counter(), self.meter.batches)

    def training_rate(self) -> float:
        """Images per second over all ranks, since this epoch began or was resumed."""
        start, done = self._clock
        images = (self.meter.batches - done) * self.spec.batch_size / self.accumulate
        return images / max(time.perf_counter() - start, 1e-9)

    def on_validation_epoch_start(self) -> None:
        self._rate = self.training_rate()
        self.scores.reset()
        self.deployed.eval()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output: Output = self.deployed(batch.images)
        teacher = None if self.teacher_predictions is None else self.teacher_predictions[batch.index]
        self.scores.update(output.logits, batch.labels, teacher)

    def on_validation_epoch_end(self) -> None:
        """Gather what the epoch's row of metrics.csv holds; loggers get the same."""
        self.check_finite()
        self.epoch_scores = self.scores.compute()
        values = {
            **{f"train/{name}": value for name, value in self.meter.compute().items()},
            **{f"{self.split}/{name}": value for name, value in self.epoch_scores.items()},
            **{f"method/{name}": float(value) for name, value in self.distiller.report(self.current_epoch + 1).items()},
            "lr": self._lr,
            "images_per_second": self._rate,
        }
        self.epoch_metrics = {"epoch": self.current_epoch + 1, "step": self.global_step, **values}
        self.log_dict({"epoch": float(self.current_epoch + 1), **values}, rank_zero_only=True)

    def check_finite(self) -> None:
        """Refuse to go on with a loss that is not finite; reads the device, hence only now and then.

        Raises:
            UserError: Naming the term.
        """
        if bad := self.meter.not_finite():
            raise UserError(
                f"The loss is not finite: {', '.join(bad)} in epoch {self.current_epoch + 1}. Checkpoints from"
                " before are kept; try a lower learning rate (recipe.lr) or a higher distiller temperature."
            )

    # ------------------------------------------------------------------ state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["meter"] = self.meter.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # the saved sums are those of all ranks: one rank goes on with them
        self.meter.load(checkpoint["meter"], keep=not dist.is_initialized() or dist.get_rank() == 0)

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        self.deployed.train(mode)
        return self
