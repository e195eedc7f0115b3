"""Whether a run fits the memory of its device, said before its first step."""

import logging
from dataclasses import asdict, dataclass

import torch
from torch import nn

from distill.answers import said
from distill.build import build
from distill.capacity import free_memory
from distill.errors import UserError
from distill.footprint import bytes_of, kept_per_number, step_peak
from distill.models.network import Network, Standin
from distill.run.config import Config, rows_of_a_batch, world_of
from distill.run.parts import Prepared

log = logging.getLogger("distill")

SURE = 1.25  # in units of what there is: the rehearsal's kernels are not quite those of the step


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part of a run on one device.

    Attributes:
        student: Parameters and buffers, with the optimizer's state.
        step: At most at once in a step: activations, gradients, and what the loss needs.
        teacher: In the form that training asks.
        method: Queues, banks and trainable extras, with the optimizer's state.
        data: Images that lie on the device.
    """

    student: int
    step: int
    teacher: int
    method: int
    data: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def estimate(config: Config, parts: Prepared) -> Estimate:
    """What a prepared run will take.

    Raises:
        Exception: As `step_peak`.
    """
    teacher = _asked(parts)
    peak = step_peak(
        parts.student,
        teacher,
        parts.distiller,
        parts.spec,
        rows=rows_of_a_batch(config, parts.device),
        size=parts.data.train_size,
        precision=parts.precision,
        device=parts.device,
    )
    kept = kept_per_number(build({**config["optimizer"], "_partial_": True}, what="optimizer", given=("params",)))
    return Estimate(
        student=bytes_of(parts.student) + _state(parts.student, kept),
        step=peak,
        teacher=bytes_of(teacher),
        method=bytes_of(parts.distiller) + _state(parts.distiller, kept),
        data=parts.data.device_bytes,
    )


def _state(module: nn.Module, kept: float) -> int:
    return int(kept * sum(p.numel() for p in module.parameters() if p.requires_grad))


def _asked(parts: Prepared) -> Network | None:
    """The network that answers for the teacher, uncompiled and without its kept answers."""
    network = parts.asked if parts.distiller.needs_teacher else None
    while isinstance(network, Standin):
        network = network.inner
    return network


def say_memory(config: Config, parts: Prepared) -> None:
    """Log what a run will take of its device's memory, before the first step.

    The estimate leaves out what kernels take for themselves: on a CPU (bf16, 64 to 128 rows) the process grew by 1.1
    to 1.45 times as much, the most where convolutions are wide. So a run of which it says that it does not fit, does
    not: it is refused, or warned of where that is close. Where the estimate fails, it says so, and the run goes on.

    Raises:
        UserError: If the run does not fit.
    """
    device = parts.device
    try:
        found = estimate(config, parts)
    except Exception as error:  # an estimate is no reason to stop
        log.info("memory: not estimated (%s)", " ".join(str(error).split())[:120] or type(error).__name__)
        return
    held = sum(bytes_of(m) for m in (parts.student, parts.asked, parts.distiller) if m is not None and _on(m, device))
    free = free_memory(device)
    there = None if free is None else free + held
    ranks = world_of(config["trainer"], device) if device.type == "cpu" else 1
    shares = ", ".join(f"{name} {said(size)}" for name, size in asdict(found).items())
    needed = found.total * ranks
    of = "" if there is None else f" of {said(there)}"
    each = f" for each of {ranks} processes" if ranks > 1 else ""
    log.info("memory: about %s%s on %s (%s%s)", said(needed), of, device.type, shares, each)
    if there is None or needed <= there:
        return
    text = (
        f"This run needs about {said(needed)} on {device.type}, {said(found.step * ranks)} of it for the activations of"
        f" a batch, but {said(there)} are free: cut the batch into micro-batches, such as"
        f" recipe.accumulate={2 * config['recipe']['accumulate']}, or choose a smaller recipe.batch_size or"
        " student.input_size."
    )
    if needed > SURE * there:
        raise UserError(text)
    log.warning("It may not fit into memory. %s", text)


def _on(module: nn.Module, device: torch.device) -> bool:
    return next((x.device.type for x in module.parameters()), None) == device.type
