"""Scores of a network that is there already: a run's, a checkpoint's, or a weights file's."""

from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor, nn

from distill import record
from distill.build import channels_last, freeze
from distill.data.base import ImageData
from distill.errors import UserError
from distill.numerics import choose_precision, flush_denormals
from distill.run import config as settings
from distill.run.config import Config, device_of
from distill.run.parts import build_data, build_one
from distill.run.source import student_of, with_data_of
from distill.scores import evaluate

KEYS = ("top1", "top5", "nll", "ece", "agreement")


def score(cfg: DictConfig) -> dict[str, float]:
    """Evaluate what the command line names, print the scores, and write them where `output` says.

    Returns:
        top1, top5, ece and agreement (with a teacher) in percent, nll in nats.

    Raises:
        UserError: If it is not clear what to evaluate, or weights, classes and data do not fit.
    """
    flush_denormals()
    if (cfg.source is None) == (cfg.get("student") is None):
        raise UserError(
            "Say what to evaluate: source=RUN_FOLDER (or one of its files), or student=NAME student.weights=FILE."
        )
    if cfg.source is not None:
        cfg = with_data_of(Path(cfg.source), cfg, list(HydraConfig.get().overrides.task))
    config = settings.resolve(cfg)
    device = device_of(config["trainer"])
    precision, why = choose_precision(config["trainer"]["precision"], device)
    network = _network(config)
    teacher = freeze(build_one(config, "teacher")) if config.get("teacher") else None
    data = build_data(config)
    ask = partial(evaluate, num_classes=data.num_classes, device=device, precision=precision)
    predictions: Tensor | None = None
    if teacher is not None:
        predictions = ask(teacher, _batches(data, config["split"])).predictions
    found = ask(network, _batches(data, config["split"]), teacher=predictions).scores
    scores = {key: found[key] for key in KEYS if key in found}
    units = {"nll": " nats"}
    print(f"{config['names']['data']} {config['split']} set, precision {precision} ({why}):")
    for key, value in scores.items():
        print(f"  {key:<10}{value:8.4f}{units.get(key, ' %')}")
    if config["output"]:
        record.write_json(Path(config["output"]), scores)
    return scores


def _network(config: Config) -> nn.Module:
    if config["source"] is None:
        if config["student"].get("weights") is None and not config["student"].get("pretrained"):
            raise UserError(
                "student.weights=FILE is missing: a network with random weights has no scores worth having."
            )
        return build_one(config, "student")
    return channels_last(student_of(Path(config["source"]), config.get("run")))


def _batches(data: ImageData, split: str) -> Any:
    if split == "test":
        return data.test_dataloader()
    if split == "holdout" and data.evaluated_on == "holdout":
        return data.val_dataloader()
    raise UserError(f"split={split} is not there: choose test, or holdout together with data.holdout=N.")
