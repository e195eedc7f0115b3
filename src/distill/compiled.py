"""Networks through `torch.compile`, where that pays, and without it where it fails."""

import importlib.util
import logging
import time
from collections.abc import Callable
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from distill.models.network import Network
from distill.numerics import autocast
from distill.types import Output

log = logging.getLogger("distill")

# A minute or so of compiling is paid back within as many steps. On the CPUs tried, the compiled student is slower than
# oneDNN's eager kernels, so that "auto" leaves a CPU alone.
WORTH_STEPS = 2_000
ROUNDS = 3  # CUDA graphs are recorded at the second call, and replayed from the third


def pays(asked: str | bool, device: torch.device, *, steps: int) -> bool:
    """Whether to compile, for `trainer.compile` = auto, true or false.

    Args:
        asked: What the configuration says.
        device: Where the networks run.
        steps: Of the run.
    """
    if asked != "auto":
        return bool(asked)
    return device.type == "cuda" and steps >= WORTH_STEPS and importlib.util.find_spec("triton") is not None


def compile_student(student: Network, *, rows: int, size: int, precision: str, device: torch.device) -> bool:
    """Compile the training step's passes through a student, in place, on the device.

    On CUDA they become CUDA graphs, which know one shape: batches of another size, as an epoch's last, and evaluation
    go through the network as it was. What fails at the first passes is said, and leaves the network as it was.

    Args:
        student: On its way to training.
        rows: Of a whole batch on this device.
        size: Height and width of the images in px.
        precision: As `choose_precision` returns it.
        device: Where it will train; it is moved there.

    Returns:
        Whether the student is compiled now.
    """
    student.to(device)
    plain: Callable[[Tensor], Output] = student.forward
    mode = "reduce-overhead" if device.type == "cuda" else None
    quick = torch.compile(plain, mode=mode, dynamic=False)

    def forward(images: Tensor) -> Output:
        return quick(images) if student.training and len(images) == rows else plain(images)

    own = cast(Any, student)  # an attribute of this object hides its class's method
    own.forward = forward
    began = time.perf_counter()
    try:
        _try(student, torch.zeros(rows, 3, size, size, device=device), precision)
    except Exception as error:  # compilers fail in as many ways as there are machines
        own.forward = plain
        _warn("student", error)
        return False
    log.info("student compiled in %.0f s", time.perf_counter() - began)
    return True


def works(teacher: Network, *, size: int, device: torch.device) -> bool:
    """Whether a compiled teacher, compiled at its first call, answers at all; says so where it does not."""
    began = time.perf_counter()
    try:
        teacher(torch.zeros(2, 3, size, size, device=device))
    except Exception as error:
        _warn("teacher", error)
        return False
    log.info("teacher compiled in %.0f s", time.perf_counter() - began)
    return True


def _warn(what: str, error: Exception) -> None:
    log.warning("the %s is not compiled: %s", what, " ".join(str(error).split())[:300])


def _try(student: Network, images: Tensor, precision: str) -> None:
    """Train on nothing, and leave no trace of it."""
    training, before = student.training, [buffer.clone() for buffer in student.buffers()]
    student.train()
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        for _ in range(ROUNDS):
            next_step(images.device)
            with autocast(precision, images.device):
                loss = student(images).logits.sum()
            loss.backward()
            student.zero_grad(set_to_none=True)
    finally:
        student.train(training)
        with torch.no_grad():
            for buffer, value in zip(student.buffers(), before, strict=True):
                buffer.copy_(value)


def next_step(device: torch.device) -> None:
    """Say that answers of the step before are done with: CUDA graphs write over them."""
    if device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


class NextStep(pl.Callback):
    """Says before each batch that a new step begins, see `next_step`."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        next_step(pl_module.device)
