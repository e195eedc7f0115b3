"""Networks that a command line names: what runs deployed, or the catalogue's with a weights file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from distill import zoo
from distill.analysis import paper
from distill.build import build_network, channels_last
from distill.checkpoint import load_state, read_metadata, read_state
from distill.deploy import RECIPE, load, load_checkpoint, recipe_in
from distill.errors import UserError
from distill.files import BEST, CONFIG, LAST, RESULT, STUDENT
from distill.mistake import nearest_first
from distill.models.network import Network
from distill.run.config import Config, plain

ALONE = "teacher"  # what tables call the method of a network that no run of ours has trained
FORMS = "a run's folder or one of its files, NAME:FILE, or {source: ..., label: NAME}"
KEYS = ("source", "name", "weights", "label", "teacher", "distiller")


@dataclass(frozen=True)
class Named:
    """One network, and what tables call it.

    Attributes:
        network: With its weights.
        teacher: Of the run that made it; its own name for a network that no run made.
        student: Its own name.
        catalogue: The same before it was given another for tables: protocols may have a rate for it.
        distiller: The method, "teacher" for a network that no run made.
        variant: The run's, and how it differs from one of full length.
        trained_on: Name of the data set that it knows.
        seed: Of its run; None without one.
        file: Where it was read.
    """

    network: Network
    teacher: str
    student: str
    catalogue: str
    distiller: str
    variant: str
    trained_on: str
    seed: int | None
    file: Path | None


def named_networks(entries: Any, *, data: Config, trained_on: str) -> list[Named]:
    """The networks of a list, as conf/probe.yaml describes it; a folder of runs stands for all of them.

    Args:
        entries: Of the command line.
        data: The data set that networks of the catalogue know: its classes and normalisation.
        trained_on: Its name.

    Raises:
        UserError: If an entry is none of the forms, or what it names is absent or does not fit.
    """
    entries = [entries] if isinstance(entries, str | Mapping) else entries
    if not isinstance(entries, list):
        raise UserError(f"networks={entries} must be a list, of {FORMS} each.")
    return [one for entry in entries for one in _of_entry(entry, data=data, trained_on=trained_on)]


def of_node(node: Config, *, name: str, data: Config, trained_on: str) -> Named:
    """The network of a `student` node.

    Raises:
        UserError: If it has no weights, or these do not fit.
    """
    if node.get("weights") is None and not node.get("pretrained"):
        raise UserError("student.weights=FILE is missing: the features of a network with random weights mean nothing.")
    return _alone(_built(node, node.get("weights"), name=name, data=data), node.get("weights"), name, trained_on)


def _of_entry(entry: Any, *, data: Config, trained_on: str) -> list[Named]:
    given = {"source": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping):
        raise UserError(f"networks={entry} is none of {FORMS}.")
    if strange := next((str(key) for key in given if key not in KEYS), None):
        raise UserError(f"There is no key {strange} in networks: an entry has {nearest_first(strange, KEYS)}.")
    if ("source" in given) == ("name" in given):
        raise UserError(f"networks={dict(given)} must have a source, or a name with weights.")
    if "name" in given:
        found = [_of_catalogue(str(given["name"]), given.get("weights"), data=data, trained_on=trained_on)]
    elif "weights" in given:
        raise UserError(f"networks={dict(given)}: weights go with a name, not with a source.")
    else:
        found = _of_source(str(given["source"]), data=data, trained_on=trained_on)
    return [_renamed(one, given) for one in found]


def _renamed(one: Named, given: Mapping[str, Any]) -> Named:
    if label := given.get("label"):
        one = replace(one, student=str(label), teacher=str(label) if one.distiller == ALONE else one.teacher)
    return replace(
        one,
        teacher=str(given.get("teacher") or one.teacher),
        distiller=str(given.get("distiller") or one.distiller),
    )


def _of_source(text: str, *, data: Config, trained_on: str) -> list[Named]:
    path = Path(text)
    if path.is_dir():
        runs = [path] if (path / STUDENT).exists() else sorted(file.parent for file in path.rglob(STUDENT))
        if not runs:
            raise UserError(f"{path} holds no finished run: there is no {STUDENT} in it, nor in a folder below.")
        return [_of_run(run / STUDENT) for run in runs]
    if _of_ours(path):
        return [_of_run(path)]
    name, colon, file = text.partition(":")
    if colon or zoo.by_paper(name, trained_on) is not None:
        return [_of_catalogue(name, file or None, data=data, trained_on=trained_on)]
    if path.exists():
        raise UserError(f"{path} does not say which network it holds: write NAME:{path}, with a name of the catalogue.")
    raise UserError(f"networks={text} does not exist, and is no network of the catalogue: give {FORMS}.")


def _of_ours(path: Path) -> bool:
    """Whether a file, or the run that it lies in, says which network it holds."""
    if not path.is_file():
        return False
    return path.suffix == ".ckpt" or (path.suffix == ".safetensors" and RECIPE in read_metadata(path))


# ---------------------------------------------------------------------- of the catalogue


def _of_catalogue(name: str, weights: Any, *, data: Config, trained_on: str) -> Named:
    entry = zoo.by_name(name)
    path = Path(weights or f"weights/{trained_on}/{name}.safetensors")
    if weights is None and not path.exists():
        raise UserError(
            f"{name} has no weights at {path}: name a file with {name}:FILE, or fetch the published ones with"
            " `python scripts/teachers.py fetch`."
        )
    node = {"_target_": entry.target, **entry.arguments, "num_classes": data["num_classes"]}
    return _alone(_built(node, path, name=name, data=data), path, name, trained_on)


def _alone(network: Network, weights: Any, name: str, trained_on: str) -> Named:
    return Named(
        network=network,
        teacher=name,
        student=name,
        catalogue=name,
        distiller=ALONE,
        variant="",
        trained_on=trained_on,
        seed=None,
        file=None if weights is None else Path(weights),
    )


def _built(node: Config, weights: Any, *, name: str, data: Config) -> Network:
    """With as many classes as its weights have: its classifier is not read."""

    def network() -> Network:
        sizes = {key: data[key] for key in ("num_classes", "mean", "std")}
        return build_network(node, what="student", seed=0, **sizes)

    if weights is None:
        return network()
    state = read_state(weights)
    built = network()
    classes = _classes_in(state, built)
    if classes is not None and "num_classes" in node:
        node = {**node, "num_classes": classes}
        built = network()
    load_state(built.published, state, what=name, origin=str(weights))
    channels_last(built)
    return built


def _classes_in(state: Mapping[str, Any], network: Network) -> int | None:
    try:
        head = network.classifier
    except (NotImplementedError, UserError):
        return None  # not every network ends in one linear layer
    place = next((name for name, module in network.published.named_modules() if module is head), None)
    weight = state.get(f"{place}.weight")
    return None if weight is None else len(weight)


# ---------------------------------------------------------------------- of runs


def _of_run(file: Path) -> Named:
    folder = file.parent
    config = plain(OmegaConf.load(folder / CONFIG)) if (folder / CONFIG).exists() else {}
    result: dict[str, Any] = json.loads((folder / RESULT).read_text()) if (folder / RESULT).exists() else {}
    if file.suffix == ".ckpt":
        if not config:
            raise UserError(f"{file} lies beside no {CONFIG}: a checkpoint needs the folder of its run.")
        network, names = load_checkpoint(file, config), config["names"]
    else:
        network = load(file)
        names = result.get("names") or json.loads(recipe_in(file))["names"]
    channels_last(network)
    seed = result.get("seed", config.get("seed"))
    variant = result.get("variant") or config.get("variant")
    return Named(
        network=_network(network, file),
        teacher=names["teacher"],
        student=names["student"],
        catalogue=names["student"],
        distiller=names.get("distiller", "none"),
        variant=" ".join(filter(None, [variant, *_length(file, config, result, names["data"])])),
        trained_on=names["data"],
        seed=None if seed is None else int(seed),
        file=file,
    )


def _length(file: Path, config: Config, result: Mapping[str, Any], data: str) -> list[str]:
    """How a network differs from one of the last epoch of a run of full length: these are rows of their own."""
    recipe = config.get("recipe", {})
    epochs = result.get("epochs", recipe.get("epochs"))
    found = []
    if epochs is not None and epochs != recipe.get("full_epochs", paper.EPOCHS.get(data)):
        found.append(f"recipe.epochs={epochs}")
    if file.name == BEST or (file.name == LAST and not result):
        found.append(file.name)
    return found


def _network(module: nn.Module, file: Path) -> Network:
    if not isinstance(module, Network):
        raise UserError(f"{file} holds a {type(module).__name__}, which is no distill.models.Network.")
    return module
