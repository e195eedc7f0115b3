"""What an earlier run left, as the source of another command: its configuration, its data set, its student."""

import copy
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from distill.deploy import load, load_checkpoint
from distill.errors import UserError
from distill.files import CONFIG
from distill.run.config import Config


def with_data_of(source: Path, cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """A configuration with the source's run under `run`, and its data set, unless the command line names another.

    Before anything is resolved: a teacher's classes and normalisation follow the data.

    Args:
        source: A run's folder, or one of its files; a moved student.safetensors lies beside no run.
        cfg: Of the command.
        overrides: Of its command line.

    Raises:
        UserError: If there is no such file, or a checkpoint lies beside no run.
    """
    if not source.exists():
        raise UserError(f"source={source} does not exist.")
    file = (source if source.is_dir() else source.parent) / CONFIG
    if not file.exists():
        if source.suffix == ".ckpt":
            raise UserError(f"{source} lies beside no {CONFIG}: a checkpoint needs the folder of its run.")
        return cfg
    saved = OmegaConf.load(file)
    assert isinstance(saved, DictConfig)
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.run = saved
        if not chooses_data(overrides):
            own = {o.split("=", 1)[0].removeprefix("data.") for o in overrides if o.startswith("data.")}
            cfg.data = {**saved.data, **{key: cfg.data[key] for key in own}}
            cfg.names.data, cfg.seed = saved.names.data, saved.seed
    return cfg


def chooses_data(overrides: list[str]) -> bool:
    """Whether a command line names a data set."""
    return any(o.startswith("data=") for o in overrides)


def student_of(source: Path, run: Config | None) -> nn.Module:
    """What a source deploys.

    Args:
        source: As in `with_data_of`.
        run: The run's configuration, which a checkpoint needs.

    Raises:
        UserError: If the source does not hold it.
    """
    if source.suffix != ".ckpt":
        return load(source)
    assert run is not None
    return load_checkpoint(source, run)
