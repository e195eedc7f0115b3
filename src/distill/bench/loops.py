"""What the measured loops share: a clock that waits for the device, blocks of steps, and one step of learning."""

import copy
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from distill.build import Node, build
from distill.compiled import next_step
from distill.distillers import Distiller
from distill.errors import UserError
from distill.models.network import Network, Standin
from distill.numerics import autocast
from distill.run.parts import Prepared
from distill.types import Batch, Output, Step


class Clock:
    """Seconds, read once the device has done all it was given."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Block:
    """Consecutive steps of one variant.

    Attributes:
        variant: "usual", "plain", "real" or "kept"; or a method, where methods are compared.
        round: The turn, from 0: blocks of one round are compared with each other.
        steps: How many.
        seconds: All of them together.
        waiting: Seconds of these in which the loop waited for its loader.
    """

    variant: str
    round: int
    steps: int
    seconds: float
    waiting: float = 0.0


class Loop:
    """Takes steps; `waiting` counts the seconds it waited for its loader."""

    waiting = 0.0

    def begin(self) -> None:
        """Get into the state of a loop that has been running."""

    def step(self) -> None:
        """One training step."""
        raise NotImplementedError

    def end(self) -> None:
        """Leave nothing running that would take time from others."""


def timed(loop: Loop, clock: Clock, *, variant: str, number: int, steps: int) -> Block:
    """A block of a loop in a round, after one step that is not counted."""
    loop.begin()
    loop.step()
    loop.waiting = 0.0
    start = clock()
    for _ in range(steps):
        loop.step()
    block = Block(variant, number, steps, clock() - start, loop.waiting)
    loop.end()
    return block


class Relay(Standin):
    """Stands for a network that may be exchanged for another, and that may know some answers."""

    def ask(self, batch: Batch) -> Output:
        """The other's answer."""
        return self.inner.ask(batch)


class Parts(NamedTuple):
    """Networks and method that belong together."""

    student: Network
    teacher: Network | None
    distiller: Distiller


def copies(prepared: Prepared) -> Parts:
    """Copies of student, original teacher and method, which point at each other as the originals do."""
    parts = Parts(*copy.deepcopy((prepared.student, prepared.teacher, prepared.distiller)))
    for part in parts:
        if part is not None:
            for name in ("train", "forward"):  # of `build.freeze` and `compile_student`, which speak for the originals
                part.__dict__.pop(name, None)
            part.to(prepared.device)
    if parts.teacher is not None:
        parts.teacher.eval()
    parts.student.train()
    parts.distiller.train()
    return parts


def optimizer_of(node: Node, parts: Parts) -> Optimizer:
    """The optimizer over everything that is trained.

    Raises:
        UserError: If it is none of torch's own: others may ask the training loop for more than gradients.
    """
    make = build({**node, "_partial_": True}, what="optimizer", given=("params",))
    trained = [p for part in (parts.student, parts.distiller) for p in part.parameters() if p.requires_grad]
    optimizer: Optimizer = make(trained)
    if not type(optimizer).__module__.startswith("torch."):
        raise UserError("The benchmark's loops drive torch's optimizers alone: choose optimizer=sgd or adamw.")
    return optimizer


@dataclass
class Learner:
    """One step of learning, as the training loop does it, without the training loop.

    Attributes:
        parts: Networks and method; the teacher is the one to ask.
        optimizer: Over what is trained.
        precision: As `choose_precision` returns it.
        device: Where everything lies.
        compiled: Whether the student is.
        done: Steps taken.
    """

    parts: Parts
    optimizer: Optimizer
    precision: str
    device: torch.device
    compiled: bool = False
    done: int = 0

    def __post_init__(self) -> None:
        self.scaler = GradScaler(self.device.type, enabled=self.precision == "16-mixed")

    def learn(self, batch: Batch) -> Tensor:
        """Take a step; returns the loss, still on the device."""
        self.begin()
        with autocast(self.precision, self.device):
            student, teacher = self.parts.distiller.observe(self.parts.student, self.parts.teacher, batch)
            step = Step(batch, student, teacher, epoch=1, step=self.done)
            loss = self.loss(step)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.parts.distiller.update(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.done += 1
        return loss.detach()

    def begin(self) -> None:
        """To be called before each step."""
        if self.compiled:
            next_step(self.device)

    def loss(self, step: Step) -> Tensor:
        """Sum of the method's terms."""
        return torch.stack(list(self.parts.distiller(step).values())).sum()
