"""A trained student, back from disk, ready to call."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, get_object
from torch import Tensor, nn

from distill.build import Node, build_distiller, build_network, freeze, give_weights, methods_in, shapes
from distill.checkpoint import AtomicIO, load_state, load_weights, read_metadata
from distill.distillers import Distiller
from distill.errors import UserError
from distill.files import STUDENT
from distill.models.network import Network
from distill.types import Output, Spec

RECIPE = "distill"  # the metadata key under which a file says how to rebuild its network
OWN = "distiller."  # how keys of a method's own state begin in a checkpoint


def _composite(method: Node) -> bool:
    """Whether a method deploys more than the student; one that is made of others deploys what they do."""
    if parts := methods_in(method):
        return any(_composite(part) for part in parts.values())
    return getattr(get_class(method["_target_"]), "deploy", None) is not Distiller.deploy


def recipe_of(config: dict[str, Any]) -> dict[str, Any]:
    """How to rebuild what a run's method deploys, as plain data that needs no other file.

    The teacher and the method are part of it only where the method deploys more than the student.

    Args:
        config: The run's, resolved.
    """
    sizes = {key: config["data"][key] for key in ("num_classes", "size", "mean", "std")}
    recipe: dict[str, Any] = {"names": config["names"], "data": sizes, "student": _whole(config["student"])}
    if _composite(config["distiller"]):
        recipe |= {"teacher": _whole(config["teacher"]), "distiller": config["distiller"]}
    return recipe


def metadata_of(config: dict[str, Any], *, top1: float | None) -> dict[str, str]:
    """What a file of a run's deployed student says of it.

    Args:
        config: The run's, resolved.
        top1: Of these weights, in percent, where it is known.
    """
    names = config["names"]
    metadata = {RECIPE: json.dumps(recipe_of(config)), "data": names["data"], "name": names["student"]}
    return metadata if top1 is None else {**metadata, "top1": f"{top1:.2f}"}


def _whole(node: Node) -> dict[str, Any]:
    """A network's node without its weights, and with what a file would say of it."""
    if get_object(node["_target_"]) is Deployed:
        node = {**node, "file": None, "recipe": node["recipe"] or recipe_in(node["file"])}
    return {**node, "weights": None}


@dataclass(frozen=True)
class Rebuilt:
    """What is deployed, and what it was made from; teacher and method only where it is more than the student."""

    deployed: nn.Module
    student: Network
    teacher: Network | None = None
    distiller: Distiller | None = None


def rebuild(recipe: Node, *, seed: int = 0, teacher_weights: str | None = None) -> Rebuilt:
    """What `recipe_of` describes, with random weights but for the teacher's, where they are given."""
    data = recipe["data"]

    def network(what: str) -> Network:
        return build_network(
            recipe[what], what=what, num_classes=data["num_classes"], mean=data["mean"], std=data["std"], seed=seed
        )

    student = network("student")
    if "distiller" not in recipe:
        return Rebuilt(student, student)
    teacher = network("teacher")
    give_weights(teacher, teacher_weights, what="teacher")
    freeze(teacher)
    sizes = {"num_classes": data["num_classes"], "size": data["size"]}
    spec = Spec(
        student=shapes(student, what="student", **sizes),
        teacher=shapes(teacher, what="teacher", **sizes),
        num_classes=data["num_classes"],
        num_samples=1,
        labels=torch.zeros(1, dtype=torch.long),
        batch_size=1,
    )
    distiller = build_distiller(recipe["distiller"], spec, seed=seed)
    distiller.prepare(student, teacher)
    return Rebuilt(distiller.deploy(student, teacher), student, teacher, distiller)


def load_checkpoint(path: str | Path, config: dict[str, Any]) -> nn.Module:
    """What a run's checkpoint would deploy.

    Args:
        path: `last.ckpt` or `best.ckpt`.
        config: The run's, resolved.

    Raises:
        UserError: If the checkpoint does not fit the run, or parts of the teacher are deployed that it does not hold,
            and the teacher's weights are gone.
    """
    recipe = recipe_of(config)
    weights = (config.get("teacher") or {}).get("weights")
    gone = weights is not None and not Path(weights).exists()
    built = rebuild(recipe, seed=config["seed"], teacher_weights=None if gone else weights)
    load_weights(built.student, path, what="student")
    if built.distiller is not None:
        state = AtomicIO().load_checkpoint(path)["state_dict"]
        own = {key.removeprefix(OWN): value for key, value in state.items() if key.startswith(OWN)}
        load_state(built.distiller, own, what="distiller", origin=str(path))
        held = {id(x) for module in (built.student, built.distiller) for x in _tensors(module)}
        if gone and not all(id(x) in held for x in _tensors(built.deployed)):
            raise UserError(
                f"{path} lacks what {config['names']['distiller']} deploys of the teacher, whose weights are not at"
                f" {weights}: put them there, or evaluate the run's {STUDENT}."
            )
    return built.deployed


def _tensors(module: nn.Module) -> Iterable[Any]:
    return module.state_dict(keep_vars=True).values()


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
        raise UserError(f"{path} does not exist: give a finished run's folder, or its {STUDENT}.")
    deployed = rebuild(json.loads(recipe_in(path))).deployed
    load_weights(weights_of(deployed), path, what="student")
    return deployed.eval()


def recipe_in(path: str | Path) -> str:
    """What a .safetensors file says of how to rebuild its network, as JSON.

    Raises:
        UserError: If there is no such file, or it does not say.
    """
    path = Path(path)
    text = read_metadata(path).get(RECIPE) if path.suffix == ".safetensors" else None
    if text is None:
        raise UserError(f"{path} does not say which network it holds: only a run's {STUDENT} does.")
    return text


class Deployed(Network):
    """What a finished run deployed, as a network that another run can name, most of all as a teacher.

    A student read by its teacher's classifier is no network of the catalogue: its file alone says how to rebuild it. It
    looks at images as it did in its own run, whose normalisation and size it keeps. It starts untrained, as all
    networks do, and its weights are loaded like theirs.

    Args:
        file: Path of a run's student.safetensors.
        recipe: What such a file says, instead of the file.

    Raises:
        UserError: If neither is given, the file does not say how to rebuild its network, or that is no `Network`.
    """

    def __init__(self, *, file: str | None, recipe: str | None) -> None:
        super().__init__()
        if recipe is None and file is None:
            raise UserError(f"file must be the path of a run's {STUDENT}.")
        deployed = rebuild(json.loads(recipe or recipe_in(str(file)))).deployed
        if not isinstance(deployed, Network):
            raise UserError(f"{file} holds a {type(deployed).__name__}, which is no distill.models.Network.")
        self.inner = deployed

    @property
    def published(self) -> nn.Module:
        return weights_of(self.inner)

    @property
    def classifier(self) -> nn.Linear:
        return self.inner.classifier

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return self.inner.norms

    def normalise(self, *, mean: Sequence[float], std: Sequence[float], input_size: int | None) -> None:
        """Nothing: it has its own."""

    def forward(self, images: Tensor) -> Output:
        """The answer of what was deployed."""
        answer: Output = self.inner(images)
        return answer
