"""The plain loop, which is what the hardware allows this project, and the same step taken apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from distill.bench.loops import Clock, Learner, Loop, Parts, Relay, copies, optimizer_of
from distill.build import Node
from distill.compiled import compile_student
from distill.numerics import autocast
from distill.run.parts import Prepared
from distill.types import Batch, Output, Step


def learner_of(prepared: Prepared, optimizer: Node) -> Learner:
    """Copies of student and method, compiled if training would, and the teacher that training asks."""
    student, _, distiller = copies(prepared)
    data, precision, device = prepared.data, prepared.precision, prepared.device
    compiled = prepared.compiled and compile_student(
        student, rows=data.batch_size, size=data.size, precision=precision, device=device
    )
    parts = Parts(student, None if prepared.asked is None else prepared.asked.to(device), distiller)
    return Learner(parts, optimizer_of(optimizer, parts), precision, device, compiled)


class Plain(Loop):
    """Steps on batches that lie on the device, over and over: no framework, no loader, no log.

    Args:
        learner: See `learner_of`.
        batches: On the device.
    """

    def __init__(self, learner: Learner, batches: Sequence[Batch]) -> None:
        self.learner = learner
        self.batches = batches

    def step(self) -> None:
        """A step on the next batch."""
        self.learner.learn(self.batches[self.learner.done % len(self.batches)])


@dataclass(frozen=True)
class Laps:
    """Where the time of a plain step goes: means over the steps of one round, in seconds.

    Attributes:
        round: The turn.
        steps: How many.
        teacher: Asking the teacher.
        student: What else `Distiller.observe` does, and the backward pass from the student's answer on.
        loss: The method's terms, their backward pass to the student's answer, and the method's own state.
        optimizer: Its step, and freeing the gradients.
        data: A batch from the loader.
    """

    round: int
    steps: int
    teacher: float
    student: float
    loss: float
    optimizer: float
    data: float


class _Timed(Relay):
    """A teacher that counts the seconds it takes to answer."""

    seconds = 0.0
    clock: Clock

    def forward(self, images: Tensor) -> Output:
        start = self.clock()
        output = super().forward(images)
        self.seconds += self.clock() - start
        return output

    def ask(self, batch: Batch) -> Output:
        start = self.clock()
        output = super().ask(batch)
        self.seconds += self.clock() - start
        return output


class TakenApart:
    """A learner's step with a look at the clock between its parts.

    The student's answer is cut off from the student, so that the gradient stops there and is handed on by hand: what
    lies before the cut is the loss's time, what lies behind it the student's, to the microsecond.

    Args:
        learner: See `learner_of`.
        batches: From the loader, without end.
        clock: Waits for the device.
    """

    def __init__(self, learner: Learner, batches: Iterator[Batch], clock: Clock) -> None:
        self.learner = learner
        self.batches = batches
        self.clock = clock
        student, teacher, distiller = learner.parts
        self.timed = None if teacher is None else _Timed(teacher)
        if self.timed is not None:
            self.timed.clock = clock
        self.parts = Parts(student, self.timed, distiller)

    def laps(self, *, number: int, steps: int) -> Laps:
        """Means over some steps, after one that is not counted."""
        self._step()
        sums = [sum(parts) for parts in zip(*(self._step() for _ in range(steps)), strict=True)]
        return Laps(number, steps, *(seconds / steps for seconds in sums))

    def _step(self) -> tuple[float, float, float, float, float]:
        learner, distiller = self.learner, self.parts.distiller
        if self.timed is not None:
            self.timed.seconds = 0.0
        learner.begin()
        begin = self.clock()
        batch = next(self.batches)
        drawn = self.clock()
        with autocast(learner.precision, learner.device):
            student, teacher = distiller.observe(self.parts.student, self.timed, batch)
        observed = self.clock()
        cut, ends = cut_off(student)
        with autocast(learner.precision, learner.device):
            step = Step(batch, cut, teacher, epoch=1, step=learner.done)
            loss = learner.loss(step)
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            distiller.update(step)
        judged = self.clock()
        reached = [(end, leaf.grad) for end, leaf in ends if leaf.grad is not None]
        torch.autograd.backward([end for end, _ in reached], [gradient for _, gradient in reached])
        returned = self.clock()
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        learner.done += 1
        over = self.clock()
        asked = 0.0 if self.timed is None else self.timed.seconds
        learned = observed - drawn - asked + returned - judged
        return asked, learned, judged - observed, over - returned, drawn - begin


def cut_off(output: Output) -> tuple[Output, list[tuple[Tensor, Tensor]]]:
    """An answer without its graph, which collects the gradients that reach it.

    Returns:
        The answer, and each of its tensors with a graph beside the leaf that stands for it.
    """
    leaves: dict[int, tuple[Tensor, Tensor]] = {}

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        return leaves.setdefault(id(value), (value, value.detach().requires_grad_()))[1]

    return Output(**tree_map(leaf, dict(vars(output)))), list(leaves.values())
