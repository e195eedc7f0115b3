"""What is written once training is over: the deployed student, and the result of the run."""

import logging
from pathlib import Path

import torch
from torch import nn

from distill import record
from distill.checkpoint import save_safetensors
from distill.deploy import metadata_of, weights_of
from distill.files import BEST, RESULT, STUDENT
from distill.keeper import Keeper
from distill.run.config import Config
from distill.run.parts import Prepared
from distill.scores import evaluate

log = logging.getLogger("distill")


def finish(config: Config, folder: Path, parts: Prepared, keeper: Keeper) -> float:
    """Write the student and the result.

    Returns:
        Last top-1 in percent.
    """
    data, deployed = parts.data, parts.deployed
    metadata = metadata_of(config, top1=keeper.last["top1"])
    save_safetensors(weights_of(deployed), folder / STUDENT, metadata)
    result = {
        "format": 1,
        "status": "finished",
        "names": config["names"],
        "variant": config["variant"],
        "seed": config["seed"],
        "epochs": config["recipe"]["epochs"],
        "evaluated_on": data.evaluated_on,
        "best": keeper.best,
        "last": keeper.last,
        "teacher": None
        if parts.teacher_scores is None
        else {
            **parts.teacher_scores,
            "weights": record.file_name(config["teacher"].get("weights")),
            "keep": config["teacher"].get("keep", "off"),
        },
        "parameters": {
            "student": record.count(parts.student),
            "deployed": record.count(deployed),
            "extra": record.count(parts.distiller, trainable=True),
        },
        "seconds": round(keeper.seconds, 1),
        "images_per_second": record.mean_rate(keeper.images_per_second),
        "precision": parts.precision,
        "compiled": parts.compiled,
        "device": record.device_name(parts.device),
        "versions": record.versions(),
        "commit": record.commit(),
        "hash": config["hash"],
    }
    if data.evaluated_on == "holdout" and config.get("score_test", True):
        result["test"] = _test_scores(folder, parts, deployed)
    record.write_json(folder / RESULT, result)
    best, last = keeper.best, keeper.last
    log.info(
        "%s top-1: last %.2f, best %.2f (epoch %d); written to %s",
        data.evaluated_on,
        last["top1"],
        best["top1"],
        best["epoch"],
        folder,
    )
    return float(last["top1"])


def _test_scores(folder: Path, parts: Prepared, deployed: nn.Module) -> dict[str, dict[str, float]]:
    """Of the last and of the best epoch, on the test set, for a run that was judged on a holdout."""

    def scores() -> dict[str, float]:
        found = evaluate(
            deployed,
            parts.data.test_dataloader(),
            num_classes=parts.data.num_classes,
            device=parts.device,
            precision=parts.precision,
        )
        return found.scores

    last = scores()
    state = torch.load(folder / BEST, map_location="cpu", weights_only=True)["state_dict"]
    parts.student.load_state_dict({k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")})
    extra = {k.removeprefix("distiller."): v for k, v in state.items() if k.startswith("distiller.")}
    parts.distiller.load_state_dict(extra)
    return {"last": last, "best": scores()}
