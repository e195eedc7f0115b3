"""The files that describe a run: result.json, student.safetensors, and what was known of the teacher."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.checkpoint import read_metadata, read_state, save_atomically, save_safetensors

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "timm", "torchmetrics", "safetensors", "numpy")

# overrides that decide neither the result nor its row in a table, or that stand in a column of their own
_OF_THE_METHOD = (
    "distiller.",
    "recipe",
    "optimizer",
    "student.",
    "experiment",
    "pair",
    "tweak",
    "data.",
    "trainer.precision",
    "probe.",
)
_NOT_OF_THE_METHOD = (
    *(
        "recipe.epochs",
        "data.root",
        "data.holdout",
        "data.download",
        "data.eval_batch_size",
        "data.workers",
        "data.prefetch",
    ),
    *("student.name", "student.label"),
)
_NOT_IN_THE_HASH = ("logger", "checkpoint", "resume", "hash", "score_test")
PATHS = ("root", "download", "workers", "prefetch", "eval_batch_size", "keep", "keep_in")
# of the trainer: where and how fast it computes, what it shows
_OF_THE_DEVICE = (
    *("_target_", "accelerator", "devices", "num_nodes", "strategy", "compile", "deterministic", "benchmark"),
    *("log_every_n_steps", "enable_progress_bar", "profiler"),
)
_LEFT_OUT = {"trainer": _OF_THE_DEVICE}
_FILES = ("weights", "file")  # of a network


def variant(overrides: Iterable[str]) -> str:
    """What the command line changed of a method's defaults, sorted: a table's row beside the method's name."""
    plain = (override.lstrip("+~") for override in overrides)
    named = (f"student.weights={file_name(o)}" if o.startswith("student.weights=") else o for o in plain)
    kept = {o for o in named if o.startswith(_OF_THE_METHOD) and o.split("=", 1)[0] not in _NOT_OF_THE_METHOD}
    return " ".join(sorted(kept))


def file_name(path: str | None) -> str | None:
    """A file without its folders, which belong to a machine."""
    return None if path is None else Path(path).name


def fingerprint(config: dict[str, Any]) -> str:
    """Of what decides a run's result: the configuration without paths, logger and device; 16 hex digits.

    A file of weights counts by its content, wherever it lies.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_IN_THE_HASH}
    for key, value in kept.items():
        if isinstance(value, dict):
            kept[key] = {k: v for k, v in value.items() if k not in _LEFT_OUT.get(key, PATHS)}
    for network in (kept[group] for group in ("teacher", "student") if kept.get(group)):
        network |= {key: digest(Path(network[key])) for key in _FILES if network.get(key) is not None}
    return short_hash(kept)


def short_hash(content: Any) -> str:
    """Of plain data; 16 hex digits."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(path: Path) -> str | None:
    """SHA-256 of a file, read once as long as it stays the same; None where there is none."""
    try:
        state = path.stat()
        return _digest(path.resolve(), state.st_size, state.st_mtime_ns)
    except OSError:
        return None


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Of Python, of the packages whose code decides the numbers, and of more, where they are installed."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the code that ran, with "+" where files differ from it; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    """What a reader of the result would call the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{_processor()}, {torch.get_num_threads()} threads"
    return device.type


def chip(device: torch.device) -> str:
    """What decides the bits of arithmetic on a device: its name and, of a processor, its instructions."""
    if device.type != "cpu":
        return device_name(device)
    instructions = hashlib.sha256(_processor("flags").encode()).hexdigest()[:8]
    return f"{_processor()} {torch.backends.cpu.get_cpu_capability()} {instructions}"


def _processor(field: str = "model name") -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return platform.machine()


def count(module: nn.Module | None, *, trainable: bool = False) -> int:
    """Parameters of a module."""
    if module is None:
        return 0
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def write_json(path: Path, content: Any) -> None:
    """Write, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write, whole or not at all."""

    def write(target: Path) -> None:
        target.write_text(text)

    save_atomically(path, write)


def save_teacher(path: Path, scores: dict[str, float], predictions: Tensor) -> None:
    """Keep the teacher's scores and predictions, so that a resumed run need not ask again."""
    save_safetensors({"predictions": predictions}, path, {"scores": json.dumps(scores)})


def read_teacher(path: Path) -> tuple[dict[str, float], Tensor]:
    """What `save_teacher` wrote."""
    return json.loads(read_metadata(path)["scores"]), read_state(path)["predictions"].long()


def mean_rate(rates: Sequence[float]) -> float | None:
    """Images per second: the median over epochs, since the first pays for warming up."""
    if not rates:
        return None
    return sorted(rates)[len(rates) // 2]
