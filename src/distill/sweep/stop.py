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
        spare_the_others()
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


def spare_the_others() -> None:
    """Keep joblib from killing, as soon as one of its processes has ended, those that have not saved yet."""
    from joblib.externals.loky import reusable_executor

    # it kills what stands there, and has no public way to be told otherwise
    processes = getattr(getattr(reusable_executor, "_executor", None), "_processes", None)
    if processes is not None:
        processes.clear()
