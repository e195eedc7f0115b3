"""Several processes of one run on this machine.

Lightning would start them by running the whole command line again, which under `-m` repeats the sweep in every child
and can train two methods in one group. Here a child is given this run's resolved configuration and folder, and
nothing else.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# what launchers and schedulers set: where one has started us, it also starts the other ranks
EXTERNAL = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "GROUP_RANK")
OURS = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_by_another(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, a scheduler, or `ranks` below started this process."""
    return any(name in environ for name in EXTERNAL)


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's place among all of the run, before there is a process group."""
    return int(next((environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in environ), 0))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def ranks(world: int, folder: Path) -> Iterator[None]:
    """Be rank 0 of `world` processes while the body runs; the others run `python -m distill.rank FOLDER`.

    A child that fails takes this process with it: waiting for a dead rank would last until a time-out. On leaving,
    the environment is as before, so that the next job of a sweep starts clean.
    """
    shared = {"WORLD_SIZE": str(world), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    before = {name: os.environ.get(name) for name in OURS}
    # children import the same packages, from the folders that this process knows
    path = os.pathsep.join(p for p in sys.path if p)
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "distill.rank", str(folder)],
            env={**os.environ, **shared, "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
        )
        for rank in range(1, world)
    ]
    os.environ.update({**shared, "LOCAL_RANK": "0"})
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(children, ended), daemon=True)
    watcher.start()
    try:
        yield
        for child in children:
            child.wait(timeout=600)
    finally:
        ended.set()
        for child in children:
            if child.poll() is None:
                child.terminate()
                child.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _watch(children: list[subprocess.Popen[bytes]], ended: threading.Event) -> None:
    while not ended.wait(1.0):
        failed = [child for child in children if child.poll() not in (None, 0)]
        if failed:
            print(f"A process of this run ended with exit code {failed[0].returncode}; stopping all.", file=sys.stderr)
            for child in children:
                child.terminate()
            os.kill(os.getpid(), signal.SIGTERM)
            if not ended.wait(15.0):  # stuck in a collective that waits for the dead
                os.kill(os.getpid(), signal.SIGKILL)
            return
