"""GPUs dealt out to runs that go on side by side. Imports no torch: it must look for devices afterwards."""

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
JOBLIB = "joblib_launcher"  # starts processes on this machine and leaves the devices to them

_held: list[IO[str]] = []


def side_by_side(launcher: Mapping[str, Any]) -> bool:
    """Whether runs go on in joblib's processes on this machine.

    Args:
        launcher: Hydra's node of this name.
    """
    return JOBLIB in str(launcher.get("_target_"))


def take_gpu(launcher: Mapping[str, Any]) -> None:
    """Give this process a GPU of its own, where it is one of joblib's.

    Such a process carries out one run after another, and CUDA keeps the devices that it first saw: so a process, not a
    run, has a GPU, and holds it as long as it lives. With more processes than GPUs they share evenly.

    Args:
        launcher: Hydra's node of this name.
    """
    if not side_by_side(launcher) or _held:
        return
    gpus = visible()
    if gpus:
        os.environ[VISIBLE] = gpus[_place(launcher["n_jobs"]) % len(gpus)]


def visible(environ: Mapping[str, str] = os.environ) -> list[str]:
    """What this process may use of this machine's GPUs, as `CUDA_VISIBLE_DEVICES` names them."""
    if VISIBLE in environ:
        return [name for name in environ[VISIBLE].split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def _place(processes: int) -> int:
    """The lowest place that no other living process of this sweep holds."""
    folder = Path(tempfile.gettempdir()) / f"distill-{os.getuid()}-{os.getppid()}"
    folder.mkdir(exist_ok=True)
    places = processes if processes > 0 else os.cpu_count() or 1
    for place in range(places):
        file = (folder / str(place)).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        _held.append(file)
        return place
    return os.getpid() % places  # more processes than were announced
