"""The configuration to measure: that of a command line, less what would fall into the blocks by chance."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distill import command, record
from distill.checkpoint import save_safetensors
from distill.errors import UserError
from distill.files import TEACHER
from distill.run.check import check
from distill.run.config import Config, device_of, resolve, world_of
from distill.run.parts import build_data, build_one

EPOCHS = 10**5  # more than the blocks need
VALIDATION = 10  # batches of an epoch's validation, whose time is scaled to all
CALIBRATION = 256  # training images that set a random teacher's statistics


def composed(conf: Path, overrides: Sequence[str]) -> Config:
    """The resolved configuration of a command line of train.py.

    Args:
        conf: Folder of configuration files.
        overrides: As on the command line.

    Raises:
        UserError: As a run would.
    """
    config = resolve(command.composed(conf, "train", overrides))
    config["variant"] = record.variant(overrides)
    return config


def ready(config: Config, folder: Path, *, random_teacher: bool) -> Config:
    """The same run with a short validation, no checkpoint by the clock, no kept answers, and a teacher with weights.

    Args:
        config: As `composed` gives it.
        folder: For the run's files.
        random_teacher: Whether to use random weights even where there is a file.

    Raises:
        UserError: If the run is wrong, or one that the benchmark cannot measure.
    """
    config = copy.deepcopy(config)
    check(config)
    if config["recipe"]["accumulate"] != 1:
        raise UserError("The benchmark measures whole steps: leave recipe.accumulate at 1.")
    if world_of(config["trainer"], device_of(config["trainer"])) != 1:
        raise UserError("The benchmark measures one device: leave trainer.devices at 1.")
    config["recipe"]["epochs"] = EPOCHS
    config["trainer"]["limit_val_batches"] = VALIDATION
    config["checkpoint"] |= {"minutes": None, "steps": None}
    folder.mkdir(parents=True, exist_ok=True)
    if config.get("teacher"):
        config["teacher"]["keep"] = "off"
        weights = config["teacher"].get("weights")
        if random_teacher or (weights is not None and not Path(weights).exists()):
            config["teacher"] |= {"weights": None, "allow_chance": True}
        _stand_in(config, folder)
    return config


def settle(network: nn.Module, images: Tensor) -> None:
    """Give a network with random weights the statistics of some images, shape (batch, 3, height, width).

    Without them a deep network's answer in eval mode grows beyond what a loss can digest.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network(images)


def _stand_in(config: Config, folder: Path) -> None:
    """Random weights where there are none, and the file from which a run knows its teacher's scores.

    Measuring them takes a pass over the test set, which no step of training shows.
    """
    data = build_data(config)
    if config["teacher"].get("weights") is None and not config["teacher"].get("pretrained"):
        teacher = build_one(config, "teacher")
        settle(teacher, next(iter(data.train_dataloader())).images[:CALIBRATION])
        path = folder / "random_teacher.safetensors"
        save_safetensors(teacher.published, path, {})
        config["teacher"]["weights"] = str(path)
    rows = data.val_dataloader().cuts.num_samples
    record.save_teacher(folder / TEACHER, {"top1": 0.0, "top5": 0.0}, torch.zeros(rows, dtype=torch.int64))
