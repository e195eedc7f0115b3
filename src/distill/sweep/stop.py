"""What SIGTERM means to a sweep whose runs are carried out by other processes."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.plugins.launcher import Launcher

from distill.gpus import JOBLIB

PATIENCE = 60  # seconds in which a run may end its step and save


@contextmanager
def passed_on(launcher: Launcher) -> Iterator[None]:
    """Pass SIGTERM on to joblib's processes while they work, and end after them.

    Otherwise they would outlive this process, and train on in folders that the repeated sweep wants. A launcher that
    works in this process leaves the signal to the run; one of a cluster has its jobs looked after.
    """
    if JOBLIB not in type(launcher).__module__:
        yield
        return

    def end(number: int, frame: Any) -> None:
        children = multiprocessing.active_children()
        for child in children:
            child.terminate()
        for child in children:
            child.join(PATIENCE)
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
