"""A trained student, back from disk, ready to call."""

import json
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from torch import nn

from distill.build import Node, build_distiller, build_network, freeze, methods_in, shapes
from distill.checkpoint import load_weights, read_metadata
from distill.distillers import Distiller
from distill.errors import UserError
from distill.files import STUDENT
from distill.types import Spec

RECIPE = "distill"  # the metadata key under which a file says how to rebuild its network


def _composite(method: Node) -> bool:
    """Whether a method deploys more than the student; one that is made of others deploys what they do."""
    if parts := methods_in(method):
        return any(_composite(part) for part in parts.values())
    return getattr(get_class(method["_target_"]), "deploy", None) is not Distiller.deploy


def recipe_of(
    *, names: dict[str, Any], data: dict[str, Any], student: Any, teacher: Any, method: Any
) -> dict[str, Any]:
    """How to rebuild what a method deploys, as plain data.

    The teacher and the method are part of it only where the method deploys more than the student.
    """
    sizes = {key: data[key] for key in ("num_classes", "size", "mean", "std")}
    recipe: dict[str, Any] = {"names": names, "data": sizes, "student": {**student, "weights": None}}
    if _composite(method):
        recipe |= {"teacher": {**teacher, "weights": None}, "distiller": method}
    return recipe


def rebuild(recipe: dict[str, Any]) -> nn.Module:
    """The deployed module of `describe`, with random weights."""
    data = recipe["data"]

    def network(what: str) -> Any:
        return build_network(
            recipe[what], what=what, num_classes=data["num_classes"], mean=data["mean"], std=data["std"], seed=0
        )

    student = network("student")
    if "distiller" not in recipe:
        return student  # type: ignore[no-any-return]
    teacher = freeze(network("teacher"))
    sizes = {"num_classes": data["num_classes"], "size": data["size"]}
    spec = Spec(
        student=shapes(student, what="student", **sizes),
        teacher=shapes(teacher, what="teacher", **sizes),
        num_classes=data["num_classes"],
        num_samples=1,
        labels=torch.zeros(1, dtype=torch.long),
        batch_size=1,
    )
    distiller = build_distiller(recipe["distiller"], spec, seed=0)
    distiller.prepare(student, teacher)
    return distiller.deploy(student, teacher)


def rebuild_run(config: dict[str, Any]) -> nn.Module:
    """The deployed module of a run's resolved configuration, with random weights, to put a checkpoint's student into.

    Raises:
        UserError: If the method deploys more than the student, which a checkpoint does not hold in one piece.
    """
    method = config["distiller"]
    if _composite(method):
        name = get_class(method["_target_"]).__name__
        raise UserError(f"{name} deploys more than its student: evaluate the run's student.safetensors.")
    parts = {"names": config["names"], "data": config["data"], "student": config["student"]}
    return rebuild(recipe_of(**parts, teacher=config.get("teacher"), method=method))


def weights_of(deployed: nn.Module) -> nn.Module:
    """The module whose state_dict is written: an adapter's inner one."""
    published = getattr(deployed, "published", deployed)
    assert isinstance(published, nn.Module)
    return published


def load(run_or_file: str | Path) -> nn.Module:
    """The deployed student of a run, in eval mode.

    Args:
        run_or_file: A run's folder, or its `student.safetensors` wherever it was moved.

    Returns:
        A module that answers images in [0, 1], shape (batch, 3, height, width), with `distill.types.Output`: its
        `logits` have shape (batch, classes).

    Raises:
        UserError: If there is no such file, or it does not say how to rebuild its network.
    """
    path = Path(run_or_file)
    path = path / STUDENT if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a finished run's folder, or its student.safetensors.")
    text = read_metadata(path).get(RECIPE) if path.suffix == ".safetensors" else None
    if text is None:
        raise UserError(f"{path} does not say which network it holds: only a run's student.safetensors does.")
    deployed = rebuild(json.loads(text))
    load_weights(weights_of(deployed), path, what="student")
    return deployed.eval()
