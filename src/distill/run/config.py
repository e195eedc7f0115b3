"""The configuration as plain data: resolved, checked, or taken up again."""

import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill import launch
from distill.errors import UserError

Config = dict[str, Any]
FILE = "config.yaml"


def resolve(cfg: DictConfig) -> Config:
    """The configuration as plain data, with the networks' and data's names.

    Raises:
        UserError: If a value is missing, or there is no recipe for the data set.
    """
    if cfg.get("recipe") is None:
        raise UserError(f"There is no recipe for data={cfg.names.data}: choose one, for instance recipe=cifar100.")
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"The configuration is incomplete: {str(error).splitlines()[0]}") from error
    assert isinstance(config, dict)
    plain: Config = {str(k): v for k, v in config.items()}
    for group in ("teacher", "student"):
        if plain.get(group):
            plain["names"][group] = plain[group].get("label") or plain["names"][group]
    return plain


def check(config: Config) -> None:
    """What can be seen to be wrong before anything is built."""
    recipe = config["recipe"]
    for key in ("epochs", "batch_size", "accumulate"):
        if not isinstance(recipe[key], int) or recipe[key] < 1:
            raise UserError(f"recipe.{key}={recipe[key]} must be a whole number of at least 1.")
    if recipe["batch_size"] % recipe["accumulate"]:
        raise UserError(
            f"recipe.batch_size={recipe['batch_size']} does not divide into recipe.accumulate={recipe['accumulate']}"
            " micro-batches: choose a divisor."
        )
    if config["trainer"]["num_nodes"] > 1 and not launch.started_by_another():
        raise UserError(
            "trainer.num_nodes needs a launcher that starts one process per device, such as torchrun or srun."
        )


def device_of(trainer: Config) -> torch.device:
    """Where this process trains."""
    accelerator, rank = trainer["accelerator"], int(os.environ.get("LOCAL_RANK", 0))
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        devices = trainer["devices"]
        return torch.device("cuda", devices[rank] if isinstance(devices, list) else rank)
    if accelerator in ("gpu", "cuda"):
        raise UserError(f"trainer.accelerator={accelerator}, but this machine offers no CUDA device: use cpu or auto.")
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def world_of(trainer: Config, device: torch.device) -> int:
    """Processes on this machine."""
    devices = trainer["devices"]
    count = torch.cuda.device_count() if device.type == "cuda" else None
    if devices in ("auto", -1):
        return count or 1
    world = len(devices) if isinstance(devices, list) else int(devices)
    if count is not None and world > count:
        raise UserError(f"trainer.devices={devices}, but this machine has {count} GPU(s).")
    return world


def resumed(cfg: DictConfig, overrides: list[str]) -> Config:
    """The configuration of the run to go on with, and what may differ now: where things lie and run."""
    file = Path(cfg.resume) / FILE
    if not file.exists():
        raise UserError(f"resume={cfg.resume} is no run: there is no {file}.")
    saved = OmegaConf.load(file)
    assert isinstance(saved, DictConfig)
    now = [o for o in overrides if not o.startswith(("resume=", "hydra."))]
    free = ("trainer.", "logger.", "checkpoint.", "data.root=", "data.workers=", "teacher.weights=")
    if other := [o for o in now if not o.startswith(free)]:
        raise UserError(
            f"resume goes on with the saved configuration of {cfg.resume}: {', '.join(other)} cannot change in it"
            f" (only {', '.join(free)} can)."
        )
    merged = OmegaConf.merge(saved, OmegaConf.from_dotlist(now))
    config = OmegaConf.to_container(merged)
    assert isinstance(config, dict)
    return {str(k): v for k, v in config.items()}
