"""Whether a run keeps its teacher's answers, and under which name."""

import logging
from pathlib import Path

import torch

from distill import record
from distill.answers import Answers, said, size_of
from distill.build import OF_NETWORK
from distill.data.augmented import AugmentedData
from distill.data.base import ImageData
from distill.distillers import Distiller
from distill.errors import UserError
from distill.kept import key_of, rows_on
from distill.models.network import Network
from distill.run.config import Config

log = logging.getLogger("distill")


def answers_for(
    config: Config,
    teacher: Network,
    distiller: Distiller,
    data: ImageData,
    precision: str,
    device: torch.device,
    compiled: bool,
) -> Answers | None:
    """The table that `teacher.keep` asks for; None where it is off, or the method never asks the teacher.

    Args:
        config: Of the run.
        teacher: As it was loaded: its weights are part of the table's name.
        distiller: The method.
        data: Set up.
        precision: Of the teacher's forward pass.
        device: Where it runs.
        compiled: Whether it is compiled, which moves its last bits.

    Raises:
        UserError: If the method reads more than logits, the views are without number, or there is no room.
    """
    node = config["teacher"]
    keep = node.get("keep", "off")
    if keep == "off" or not distiller.needs_teacher:
        return None
    if distiller.needs != "logits":
        raise UserError(
            f"teacher.keep={keep} keeps logits, but distiller={config['names']['distiller']} reads feature maps:"
            " set teacher.keep=off."
        )
    if data.num_views is None:
        augmented = " with RandAugment" if isinstance(data, AugmentedData) else ""
        raise UserError(
            f"teacher.keep={keep} needs a finite set of augmented views, but those of data={config['names']['data']}"
            f"{augmented} are without number: set teacher.keep=off."
        )
    names, classes = data.num_samples * data.num_views, data.num_classes
    if keep == "memory":
        answers = Answers.in_memory(names, classes)
        log.info("teacher answers: kept in memory, up to %s", said(size_of(names, classes)))
        return answers
    about = {
        "teacher": config["names"]["teacher"],
        "network": {key: value for key, value in node.items() if key not in OF_NETWORK},
        "mean": teacher.mean.flatten().tolist(),
        "std": teacher.std.flatten().tolist(),
        "input_size": teacher.input_size,
        "data": config["names"]["data"],
        "views": data.num_views,
        "images": data.fingerprint(),
        "precision": precision,
        "device": record.chip(device),
        "rows": rows_on(device),
        "compiled": compiled,
        "torch": torch.__version__,
    }
    key = key_of(teacher, about)
    folder = Path(node["keep_in"]) / config["names"]["data"] / f"{config['names']['teacher']}-{key}"
    if not folder.exists():
        log.info("teacher answers: %s will be written to %s", said(size_of(names, classes)), folder)
    answers = Answers.on_disk(folder, about, names, classes)
    log.info("teacher answers: %.1f %% of %s known in %s", 100 * answers.known() / names, f"{names:,}", folder)
    return answers
