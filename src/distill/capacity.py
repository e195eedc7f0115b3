"""How much memory there is: in all, and free."""

import os
from pathlib import Path

import torch


def total_memory() -> int | None:
    """Bytes of the machine's memory, or of its largest GPU's where that is less; None where the system does not say."""
    there = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    if torch.cuda.is_available():
        # unlike `mem_get_info`, this puts no context on a GPU that another process trains on
        gpus = range(torch.cuda.device_count())
        there.append(max(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus))
    return min(there, default=None)


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process could still take on a device, without swapping; None where the system does not say.

    On a GPU what its allocator holds without using it counts as free.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return values.get("MemAvailable")
