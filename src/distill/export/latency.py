"""How long networks take for one batch."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

WARM_UP = 3  # calls before anything is timed: kernels are chosen, memory is reserved
PER_TURN = 5  # timed calls in a row, after one that is not timed


def measure(calls: Mapping[str, Callable[[], object]], *, times: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Time some calls, which take turns, so that a busy moment of the machine meets all of them.

    Args:
        calls: What to time, by name; each returns once the work is done.
        times: Timed calls of each, rounded up to whole turns.
        seconds: For each of them on average; after that no new turn begins.

    Returns:
        For each name: `median_ms`, `quartiles_ms` (lower, upper) and `calls`.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for call in calls.values():
            for _ in range(WARM_UP):
                call()
        end = time.perf_counter() + seconds * len(calls)
        while True:
            for name, call in calls.items():
                taken[name] += _turn(call)
            if time.perf_counter() > end or len(next(iter(taken.values()))) >= times:
                break
    return {name: _summary(values) for name, values in taken.items()}


def _turn(call: Callable[[], object]) -> list[float]:
    call()  # what it needs is in the caches again
    taken = []
    for _ in range(PER_TURN):
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def _summary(values: list[float]) -> dict[str, Any]:
    low, median, high = (float(x) for x in np.percentile(values, (25, 50, 75)))
    return {"median_ms": median, "quartiles_ms": [low, high], "calls": len(values)}
