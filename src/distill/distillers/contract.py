"""The contract between a method and the training loop."""

from typing import Literal

import torch
from torch import Tensor, nn

from distill.models.network import Network
from distill.types import Batch, Output, Part, Shapes, Step


class Distiller(nn.Module):
    """A method of distillation; only `forward` is mandatory.

    A method is constructed with a `Spec` and the numbers of its YAML file, keyword-only and without defaults.
    Trainable extras are ordinary parameters and submodules. State (queues, banks) is buffers, written in
    `update` alone.

    Attributes:
        needs: What it reads of the networks: "logits" or "features".
        views: How many views of each image it asks for: 1, or 2 with a strongly augmented one.
        needs_teacher: False for one that never asks the teacher: then a teacher only serves to compare with.
        reads: What both networks must show beside their logits, for `connectors.require`.

    The first three are said by the class, or by an instance where they depend on what it is made of; the last by the
    class.
    """

    needs: Literal["logits", "features"] = "logits"
    views: Literal[1, 2] = 1
    needs_teacher: bool = True
    reads: tuple[Part, ...] = ()

    @classmethod
    def lacks(cls, student: Shapes, teacher: Shapes) -> tuple[str, Part] | None:
        """The first thing that it reads and a network does not show: whose ("student", "teacher") and what."""
        both = (("student", student), ("teacher", teacher))
        return next(((who, part) for who, shapes in both for part in cls.reads if not shapes.show(part)), None)

    def prepare(self, student: Network, teacher: Network | None) -> None:
        """Freeze or swap parts of the networks, once, before the optimizer is built."""

    def observe(self, student: Network, teacher: Network | None, batch: Batch) -> tuple[Output, Output]:
        """Answers of student and teacher to a batch; the teacher's without a graph."""
        answer: Output = student(batch.images)
        if teacher is None or not self.needs_teacher:
            return answer, Output(logits=answer.logits.new_empty(len(batch), 0))
        with torch.no_grad():
            return answer, teacher.ask(batch)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Weighted, named terms, whose sum is the loss; the task term is always "ce".

        Each term is a mean over this rank's rows; the training loop weighs ranks that hold unequal rows. A term that
        skips rows divides by what all ranks kept, see `MCLD`. Reads state, writes none.
        """
        raise NotImplementedError

    def update(self, step: Step) -> None:
        """Write own state, after the gradient of every batch."""

    def report(self, epoch: int) -> dict[str, float | Tensor]:
        """What is worth a column per epoch beside the terms: a learned temperature, for instance.

        Args:
            epoch: The one that ends now; counts from 1.

        Returns:
            Numbers or 0-d tensors, the same names in each epoch.
        """
        return {}

    def deploy(self, student: Network, teacher: Network | None) -> nn.Module:
        """What is evaluated and exported."""
        return student
