"""The configuration as plain data: resolved, checked, or taken up again."""

import os
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.errors import UserError
from distill.files import CONFIG
from distill.mistake import nearest_first

Config = dict[str, Any]
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def plain(cfg: Any, *, resolve: bool = False) -> Config:
    """A configuration as plain dictionaries and lists."""
    config = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=resolve)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def resolve(cfg: DictConfig) -> Config:
    """The configuration as plain data, with the networks' and data's names.

    Raises:
        UserError: If a value is missing, or there is no recipe for the data set.
    """
    _refuse_hidden_files()
    if cfg.get("table"):
        raise UserError(f"experiment={cfg.table.name} is a list of runs: add -m to carry them out.")
    if cfg.get("recipe") is None:
        raise UserError(_no_recipe(cfg.names.data))
    if missing := _missing(OmegaConf.to_container(cfg)):
        raise UserError(f"{', '.join(missing)} must be given: write {missing[0]}=VALUE.")
    try:
        config = plain(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key} cannot be resolved: {str(error).splitlines()[0]}.") from error
    config.pop("sweep", None)
    for group in ("teacher", "student"):
        if config.get(group):
            config["names"][group] = config[group].get("label") or config["names"][group]
    return config


def _missing(node: Any, place: str = "") -> list[str]:
    """Keys that are marked as mandatory and have no value."""
    if isinstance(node, dict):
        return [key for name, value in node.items() for key in _missing(value, f"{place}.{name}".lstrip("."))]
    return [place] if node == "???" else []


def _sources() -> dict[str, Path]:
    """Folders of configuration files: ours is "main"; others come from `-cd` or `hydra.searchpath`."""
    sources = HydraConfig.get().runtime.config_sources
    return {source.provider: Path(source.path) for source in sources if source.schema == "file"}


def _names_in(folder: Path, group: str = "**") -> set[str]:
    return {path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob(f"{group}/*.yaml")}


def _no_recipe(data: str) -> str:
    chosen = HydraConfig.get().runtime.choices.get("recipe")
    known = sorted({name.partition("/")[2] for folder in _sources().values() for name in _names_in(folder, "recipe")})
    if chosen not in (None, data):
        return f"recipe={chosen} is unknown: choose one of {nearest_first(chosen, known)}."
    return f"There is no recipe for data={data}: choose one, for instance recipe=cifar100 (of {', '.join(known)})."


def _refuse_hidden_files() -> None:
    """Hydra reads our file where a third party's folder has one of the same name, without a word."""
    folders = _sources()
    ours = _names_in(folders.pop("main"))
    for folder in folders.values():
        if hidden := sorted(_names_in(folder) & ours):
            raise UserError(f"{folder / hidden[0]}.yaml would not be read: {hidden[0]} is there already; rename it.")


def device_of(trainer: Config) -> torch.device:
    """Where this process trains.

    Raises:
        UserError: If the accelerator is unknown, or not there.
    """
    accelerator, rank = trainer["accelerator"], int(os.environ.get("LOCAL_RANK", 0))
    if accelerator not in ACCELERATORS:
        raise UserError(f"trainer.accelerator={accelerator} is unknown: choose one of {', '.join(ACCELERATORS)}.")
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        devices = trainer["devices"]
        return torch.device("cuda", devices[rank] if isinstance(devices, list) else rank)
    if accelerator in ("gpu", "cuda"):
        raise UserError(f"trainer.accelerator={accelerator}, but this machine offers no CUDA device: use cpu or auto.")
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def world_of(trainer: Config, device: torch.device) -> int:
    """Processes on this machine.

    Raises:
        UserError: If that is no number, or more than there are GPUs.
    """
    devices = trainer["devices"]
    count = torch.cuda.device_count() if device.type == "cuda" else None
    if devices in ("auto", -1, "-1"):
        return count or 1
    if isinstance(devices, list) and count is None:
        raise UserError(
            f"trainer.devices={devices} names GPUs: without them say how many processes, trainer.devices=2."
        )
    if not isinstance(devices, list) and not (str(devices).isdecimal() and int(devices) > 0):
        raise UserError(f"trainer.devices={devices} must be auto or a whole number of at least 1.")
    world = len(devices) if isinstance(devices, list) else int(devices)
    if count is not None and world > count:
        raise UserError(f"trainer.devices={devices}, but this machine has {count} GPU(s).")
    return world


def rows_of_a_batch(config: Config, device: torch.device) -> int:
    """Images of a whole batch on one device, the most that the first rank gets."""
    recipe: dict[str, int] = config["recipe"]
    world: int = world_of(config["trainer"], device) * config["trainer"]["num_nodes"]
    return -(-(recipe["batch_size"] // recipe["accumulate"]) // world)


def resumed(cfg: DictConfig, overrides: list[str]) -> Config:
    """The configuration of the run to go on with, and what may differ now: where things lie and run."""
    file = Path(cfg.resume) / CONFIG
    if not file.exists():
        raise UserError(f"resume={cfg.resume} is no run: there is no {file}.")
    saved = OmegaConf.load(file)
    assert isinstance(saved, DictConfig)
    now = [o for o in overrides if not o.startswith(("resume=", "hydra."))]
    free = (
        "trainer.",
        "logger.",
        "checkpoint.",
        "data.root=",
        "data.workers=",
        "data.prefetch=",
        "teacher.weights=",
        "teacher.keep_in=",
    )
    if other := [o for o in now if not o.startswith(free)]:
        raise UserError(
            f"resume goes on with the saved configuration of {cfg.resume}: {', '.join(other)} cannot change in it"
            f" (only {', '.join(free)} can)."
        )
    return plain(OmegaConf.merge(saved, OmegaConf.from_dotlist(now)))
