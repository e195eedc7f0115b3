"""The parts of a run: data, networks, method, and what is known of the teacher."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

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
from distill.compiled import pays, works
from distill.data.base import ImageData
from distill.distillers import Distiller
from distill.errors import UserError
from distill.files import TEACHER
from distill.frozen import fastest
from distill.kept import KeptTeacher
from distill.models.network import Network
from distill.numerics import choose_precision, flush_denormals
from distill.run.config import Config, device_of
from distill.run.keep import answers_for
from distill.scores import evaluate
from distill.types import Spec

log = logging.getLogger("distill")


@dataclass(frozen=True)
class Prepared:
    """Data, networks and method of a run, and what is known of the teacher.

    Attributes:
        teacher: As it was built; what is deployed may hold parts of it.
        asked: The teacher that training asks: a copy in its fastest form, which may know answers beforehand.
        deployed: What is evaluated and exported.
        compiled: Whether networks go through `torch.compile`.
    """

    data: ImageData
    student: Network
    teacher: Network | None
    asked: Network | None
    deployed: nn.Module
    distiller: Distiller
    spec: Spec
    precision: str
    device: torch.device
    compiled: bool
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
            f"teacher={name} has no weights at {path}: fetch published ones with"
            f" `python scripts/teachers.py fetch {name}`, or train one with `python src/train.py data={of}"
            f" distiller=none teacher=none student={name}` and then `python scripts/teachers.py install RUN_FOLDER`"
            " (or name a file with teacher.weights=FILE)."
        )
    give_weights(network, path, what=what)
    channels_last(network)
    return network


def measure_teacher(
    config: Config, teacher: Network, data: ImageData, kept: Path, precision: str, device: torch.device
) -> tuple[dict[str, float], Tensor]:
    """The teacher's own scores, measured once in the life of a run, or of its kept answers.

    Raises:
        UserError: If it is no better than always naming the commonest class, unless `teacher.allow_chance` is set.
    """
    name = config["names"]["teacher"]
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


def prepare(config: Config, folder: Path, *, measured: bool = True) -> Prepared:
    """Build everything that a checked configuration names, and measure the teacher.

    Args:
        config: Of the run.
        folder: Of the run.
        measured: Whether the teacher's own scores are wanted; otherwise they are None.

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
    recipe = config["recipe"]
    steps = -(-data.num_samples // recipe["batch_size"]) * recipe["epochs"]
    compiled = pays(config["trainer"].get("compile", "auto"), device, steps=steps)
    asked: Network | None = None
    scores, predictions = None, None
    if teacher is not None:
        where = folder / TEACHER
        fast = partial(fastest, teacher, precision=precision, device=device, size=data.size)
        asked = fast(compiled=compiled)
        if compiled and not works(asked, size=data.size, device=device):
            asked = fast(compiled=False)
        if (answers := answers_for(config, teacher, distiller, data, precision, device, compiled)) is not None:
            asked = KeptTeacher(asked, answers)
            if answers.folder is not None:
                where = answers.folder / f"{data.evaluated_on}-{TEACHER}"
        if measured:
            scores, predictions = measure_teacher(config, asked, data, where, precision, device)
    distiller.prepare(student, teacher)
    deployed = distiller.deploy(student, teacher)
    return Prepared(
        data=data,
        student=student,
        teacher=teacher,
        asked=asked,
        deployed=deployed,
        distiller=distiller,
        spec=spec,
        precision=precision,
        device=device,
        compiled=compiled,
        teacher_scores=scores,
        teacher_predictions=predictions,
    )
