"""What needs a process of its own: the memory of one variant, and how long a command takes to its first step.

`python -m distill.bench.alone VARIANT CONFIG.json FOLDER THREADS` prints the memory as JSON.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch

from distill.bench.loops import Loop, Relay
from distill.bench.plain import Plain, learner_of
from distill.bench.rounds import Driven, Enough, keeping, know
from distill.bench.usual import Usual
from distill.errors import UserError
from distill.files import LAST
from distill.run.config import Config
from distill.run.parts import Prepared, prepare
from distill.run.train import assemble

STEPS = 3
PATIENCE = 3600.0  # seconds until a command that does not come to its first step is given up
STAGES = {"imports": r"precision \S+ on", "preparation": r"teacher \S+: top-1"}  # the lines of the log that end them


# ---------------------------------------------------------------------- memory


def memory(config: Config, folder: Path, variants: Sequence[str]) -> dict[str, dict[str, int | None]]:
    """Highest memory of each variant during a few steps, each in a process of its own.

    Args:
        config: As `settings.ready` gives it.
        folder: The one that was made ready.
        variants: Their names.

    Returns:
        Bytes by variant: of "process" (resident; on Linux, what its setting up took beyond is left out), and of the
        "device", which is None on a CPU.
    """
    found = {}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "config.json"
        file.write_text(json.dumps(config))
        for variant in variants:
            arguments = [variant, str(file), str(folder), str(torch.get_num_threads())]
            found[variant] = json.loads(_child([sys.executable, "-m", __name__, *arguments]).splitlines()[-1])
    return found


def _child(words: list[str]) -> str:
    """Standard output of a Python process that knows the same packages.

    Raises:
        UserError: With the last words of one that fails.
    """
    done = subprocess.run(words, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"A measurement in a process of its own failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def peak_of(variant: str, config: Config, folder: Path) -> dict[str, int | None]:
    """Memory of a variant in this process, which should have done nothing else."""
    prepared = prepare(config, folder)
    if variant in ("usual", "plain"):
        loop = _loop(variant, prepared, config)
        loop.step()
        _reset(prepared.device)
        for _ in range(STEPS):
            loop.step()
        return _peak(prepared.device)
    relay = None if prepared.asked is None else Relay(prepared.asked)
    look = _Look(prepared, relay, keeps=variant == "kept")
    run = assemble(config, folder, dataclasses.replace(prepared, asked=relay))
    run.trainer.callbacks.insert(0, look)  # type: ignore[attr-defined]
    with contextlib.suppress(Enough):
        run.trainer.fit(run.module, datamodule=prepared.data)
    return look.found


def _loop(variant: str, prepared: Prepared, config: Config) -> Loop:
    if variant == "usual":
        return Usual(prepared, config["optimizer"])
    few = itertools.islice(iter(prepared.data.train_dataloader()), STEPS)
    return Plain(learner_of(prepared, config["optimizer"]), [batch.to(prepared.device) for batch in few])


class _Look(Driven):
    """Watches a few steps of the training path, and ends it."""

    def __init__(self, prepared: Prepared, relay: Relay | None, *, keeps: bool) -> None:
        super().__init__()
        self.device = prepared.device
        self.relay = relay
        self.kept = keeping(prepared, asked=True) if keeps else None
        self.found: dict[str, int | None] = {}

    def script(self, trainer: pl.Trainer) -> Iterator[None]:
        if self.relay is not None:
            self.relay.to(self.device)
        yield
        if self.kept is not None and self.relay is not None:
            for batch in self.coming(trainer, STEPS):
                know(self.kept.answers, batch)
            self.relay.inner = self.kept
        _reset(self.device)
        for _ in range(STEPS):
            yield
        self.found = _peak(self.device)
        raise Enough


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak will be that of the whole process


def _peak(device: torch.device) -> dict[str, int | None]:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        process = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"process": process, "device": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None}


# ---------------------------------------------------------------------- start-up


def startup(script: Path, overrides: Sequence[str]) -> dict[str, float | None]:
    """Seconds from the start of a command to its first step.

    The command is the real one, told to save a checkpoint after each step; its first one ends the measurement, and the
    process, which then has not finished anything.

    Args:
        script: train.py.
        overrides: Of its command line.

    Returns:
        The "total", and of it "imports" (until the configuration is checked), "preparation" (data, networks, and the
        teacher's own accuracy) and "first step" (training loop, step, checkpoint); None where the log did not tell.

    Raises:
        UserError: If the command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(script), *overrides, f"hydra.run.dir={folder}", "checkpoint.steps=1"]
        lines: list[tuple[float, str]] = []
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        start = time.perf_counter()
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        reader = threading.Thread(target=_read, args=(process, lines, start), daemon=True)
        reader.start()
        try:
            while not (Path(folder) / LAST).exists():
                if process.poll() is not None or time.perf_counter() - start > PATIENCE:
                    reader.join(timeout=5)
                    said = lines[-1][1] if lines else f"exit code {process.returncode}"
                    raise UserError(f"The command whose start-up is measured came to no first step: {said}")
                time.sleep(0.01)
            total = time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
            reader.join()
    return {"total": total, **_stages(lines, total)}


def _read(process: "subprocess.Popen[str]", lines: list[tuple[float, str]], start: float) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append((time.perf_counter() - start, line.strip()))


def _stages(lines: Sequence[tuple[float, str]], total: float) -> dict[str, float | None]:
    ends = {
        stage: next((at for at, line in lines if re.match(words, line.partition(" - ")[2])), None)
        for stage, words in STAGES.items()
    }
    imports, prepared = ends["imports"], ends["preparation"]
    return {
        "imports": imports,
        "preparation": None if imports is None or prepared is None else prepared - imports,
        "first step": None if prepared is None else total - prepared,
    }


if __name__ == "__main__":
    logging.disable(logging.INFO)
    name, file, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(peak_of(name, json.loads(Path(file).read_text()), Path(folder))))
