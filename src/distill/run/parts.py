"""The parts of a run: data, networks, method, and what is known of the teacher."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill import launch, record
from distill.build import (
    build,
    build_distiller,
    build_network,
    channels_last,
    freeze,
    give_weights,
    shapes,
)
from distill.data.base import ImageData
from distill.distillers import Distiller
from distill.errors import UserError
from distill.files import TEACHER
from distill.models.network import Network
from distill.numerics import choose_precision, flush_denormals
from distill.run.config import Config, device_of
from distill.scores import evaluate
from distill.types import Spec

log = logging.getLogger("distill")


@dataclass(frozen=True)
class Prepared:
    """Data, networks and method of a run, and what is known of the teacher."""

    data: ImageData
    student: Network
    teacher: Network | None
    distiller: Distiller
    spec: Spec
    precision: str
    device: torch.device
    teacher_scores: dict[str, float] | None
    teacher_predictions: Tensor | None


def build_data(config: Config) -> ImageData:
    """The data module, prepared and set up.

    Raises:
        UserError: As the data set says: files absent or damaged, classes that differ.
    """
    node = {**config["data"]}
    if "recipe" in config:
        node["batch_size"] = config["recipe"]["batch_size"] // config["recipe"]["accumulate"]
    data = build(node, what="data")
    if not isinstance(data, ImageData):
        raise UserError(f"data._target_={node['_target_']} is no distill.data.base.ImageData.")
    data.prepare_data()
    data.setup("fit")
    return data


def build_one(config: Config, what: str) -> Network:
    """The teacher or the student, with its weights where it has any.

    Raises:
        UserError: If class, numbers or weights do not fit.
    """
    node, data = config[what], config["data"]
    network = build_network(
        node, what=what, num_classes=data["num_classes"], mean=data["mean"], std=data["std"], seed=config["seed"]
    )
    path = node.get("weights")
    if what == "teacher" and path is not None and not Path(path).exists():
        name, of = config["names"]["teacher"], config["names"]["data"]
        raise UserError(
            f"teacher={name} has no weights at {path}: fetch the published teachers with"
            f" `python scripts/teachers.py fetch`, or train one with `python src/train.py data={of} distiller=none"
            f" teacher=none student={name}` and then `python scripts/teachers.py install RUN_FOLDER`"
            " (or name a file with teacher.weights=FILE)."
        )
    give_weights(network, path, what=what)
    channels_last(network)
    return network


def measure_teacher(
    config: Config, teacher: Network, data: ImageData, folder: Path, precision: str, device: torch.device
) -> tuple[dict[str, float], Tensor]:
    """The teacher's own scores, measured once in the life of a run.

    Raises:
        UserError: If it is no better than always naming the commonest class, unless `teacher.allow_chance` is set.
    """
    kept, name = folder / TEACHER, config["names"]["teacher"]
    if kept.exists():
        scores, predictions = record.read_teacher(kept)
    else:
        found = evaluate(
            teacher, data.val_dataloader(), num_classes=data.num_classes, device=device, precision=precision
        )
        scores, predictions = found.scores, found.predictions
        if not config["teacher"].get("allow_chance"):
            _refuse_chance(name, scores["top1"], found.labels)
        if launch.rank() == 0:
            record.save_teacher(kept, scores, predictions)
    top1, top5 = scores["top1"], scores["top5"]
    log.info("teacher %s: top-1 %.2f, top-5 %.2f on the %s set", name, top1, top5, data.evaluated_on)
    return scores, predictions


def _refuse_chance(name: str, top1: float, labels: Tensor) -> None:
    commonest = labels.bincount().max().item() / len(labels)
    deviation = (commonest * (1 - commonest) / len(labels)) ** 0.5
    if top1 <= 100 * (commonest + 3 * deviation):
        raise UserError(
            f"teacher={name} is at chance: {top1:.2f} % top-1, where naming the commonest class gives"
            f" {100 * commonest:.2f} %. Give it weights with teacher.weights=FILE, or say teacher.allow_chance=true."
        )


def prepare(config: Config, folder: Path) -> Prepared:
    """Build everything that a checked configuration names, and measure the teacher.

    Raises:
        UserError: As the parts do.
    """
    flush_denormals()
    device = device_of(config["trainer"])
    precision, why = choose_precision(config["trainer"]["precision"], device)
    log.info("precision %s on %s: %s", precision, device.type, why)
    if not config["data"]["num_classes"]:
        build_data(config)  # of a folder without images, which can say so better than a network
    student = build_one(config, "student")
    teacher = freeze(build_one(config, "teacher")) if config.get("teacher") else None
    data = build_data(config)
    sizes = {"num_classes": data.num_classes, "size": data.size}
    spec = Spec(
        student=shapes(student, what="student", **sizes),
        teacher=None if teacher is None else shapes(teacher, what="teacher", **sizes),
        num_classes=data.num_classes,
        num_samples=data.num_samples,
        labels=data.labels,
        batch_size=config["recipe"]["batch_size"],
    )
    distiller = build_distiller(config["distiller"], spec, seed=config["seed"])
    data.strong_views = distiller.views == 2
    scores, predictions = None, None
    if teacher is not None:
        scores, predictions = measure_teacher(config, teacher, data, folder, precision, device)
    distiller.prepare(student, teacher)
    return Prepared(data, student, teacher, distiller, spec, precision, device, scores, predictions)
