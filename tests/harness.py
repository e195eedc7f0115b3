"""Runs as the command line composes them, inside the test's own process."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback

from distill import command
from distill.run import config as settings
from distill.run import export as exporting
from distill.run import probe as probes
from distill.run import train
from distill.run.score import score

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
METHODS = sorted(path.stem for path in (CONF / "distiller").glob("*.yaml"))
# small and quick: six steps per epoch, narrow networks at 16 px, float32
SMALL = (
    *("data=digits", "data.size=16", "student=resnet8", "student.widths=[4,4,8,8]"),
    *("recipe.batch_size=256", "recipe.epochs=2", "trainer.precision=32-true"),
)
RANDOM_TEACHER = ("teacher=resnet8", "teacher.widths=[4,4,8,8]", "teacher.weights=null", "teacher.allow_chance=true")


def configure(*overrides: str) -> settings.Config:
    """The resolved configuration of a command line of train.py."""
    config = settings.resolve(command.composed(CONF, "train", overrides))
    config["variant"] = ""
    return config


def evaluate(*overrides: str) -> dict[str, float]:
    """`python src/eval.py ...` in float32."""
    return score(command.composed(CONF, "eval", [*overrides, "trainer.precision=32-true"]))


def probe(*overrides: str) -> list[Path]:
    """`python src/probe.py ...`; the folder of each probe."""
    return probes.probe(command.composed(CONF, "probe", overrides))


def export(*overrides: str) -> Path:
    """`python src/export.py ...`, with as little measuring as can be."""
    short = ("check.rows=70", "latency.times=1", "latency.batches=[1,3]", "trainer.accelerator=cpu")
    return exporting.export(command.composed(CONF, "export", [*short, *overrides]))


class Killed(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


class KillAt(Callback):
    """Stops a run after so many batches of training, before anything else is written."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_start(self, *_: Any) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


def execute(config: settings.Config, folder: Path, *, kill_at: int | None = None) -> None:
    """Carry a run out, or the part of it before it is killed."""
    if kill_at is None:
        train.carry_out(config, folder)
        return
    build = train._trainer

    def with_killer(*args: Any) -> Any:
        trainer = build(*args)
        trainer.callbacks.insert(0, KillAt(kill_at))
        return trainer

    train._trainer = with_killer
    try:
        train.carry_out(config, folder)
    except Killed:
        pass
    finally:
        train._trainer = build


def state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint, optimizer included, by name."""
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    tensors: dict[str, torch.Tensor] = dict(checkpoint["state_dict"])
    for number, buffers in checkpoint["optimizer_states"][0]["state"].items():
        tensors |= {f"optimizer.{number}.{k}": v for k, v in buffers.items() if isinstance(v, torch.Tensor)}
    return tensors


def script(name: str) -> ModuleType:
    """A script as a module of its own, without running it."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public_weights(name: str) -> Path:
    """A file of chenyaofo/pytorch-cifar-models; skips the test where there is none."""
    folder = os.environ.get("DISTILL_WEIGHTS")
    if not folder or not Path(folder, f"{name}.pth").exists():
        pytest.skip(f"needs DISTILL_WEIGHTS: a folder with {name}.pth of chenyaofo/pytorch-cifar-models")
    return Path(folder, f"{name}.pth")


def yaml(path: Path) -> Any:
    """A YAML file as plain data, unresolved."""
    return OmegaConf.to_container(OmegaConf.load(path))
