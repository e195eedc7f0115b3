"""Precision, memory layout, denormals and random streams: what decides the bits of a run."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from distill.errors import UserError

PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true")


def choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """The precision to train in on a device, and why.

    Args:
        asked: One of `PRECISIONS`; "auto" takes bf16 where the hardware computes in it.
        device: Where the networks will live.

    Raises:
        UserError: If the name is unknown, or float16 is asked for on a CPU.
    """
    if asked not in PRECISIONS:
        raise UserError(f"trainer.precision={asked} is unknown: choose one of {', '.join(PRECISIONS)}.")
    if asked == "16-mixed" and device.type == "cpu":
        raise UserError("trainer.precision=16-mixed needs a GPU: choose bf16-mixed or 32-true on a CPU.")
    if asked != "auto":
        return asked, "as asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{torch.cuda.get_device_name(device)} computes in bfloat16"
        return "32-true", f"{torch.cuda.get_device_name(device)} does not compute in bfloat16"
    if device.type == "cpu":
        for has, name in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-BF16")):
            if getattr(torch.cpu, has, bool)():
                return "bf16-mixed", f"this CPU has {name}"
        return "32-true", "this CPU has neither AMX nor AVX512-BF16"
    return "32-true", f"bfloat16 is untested on {device.type}"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The context in which networks run under a precision of `choose_precision`."""
    if precision == "32-true":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype)
    return context


def flush_denormals() -> None:
    """Training on a CPU slows several-fold once values turn denormal; a no-op elsewhere."""
    torch.set_flush_denormal(True)


@contextmanager
def share_of_threads(processes: int) -> Iterator[None]:
    """Compute with one process's part of this machine's cores, unless OMP_NUM_THREADS says with how many."""
    before = torch.get_num_threads()
    if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def mix(*parts: int | str) -> int:
    """A seed of 63 bits from what names a random stream, e.g. `mix(seed, "student")`."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reseed(seed: int, device: torch.device) -> None:
    """Seed the processor's and the device's global random state.

    `torch.manual_seed` would note the call, with its whole stack, for every kind of accelerator not in use: most
    of a millisecond at each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def stream(*parts: int | str) -> Iterator[None]:
    """Draw from a random stream of its own on the CPU, and leave the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mix(*parts))
        yield
