"""From plain configuration nodes to objects: networks with their weights, methods with their shapes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, get_object, instantiate
from torch import nn

from distill.checkpoint import load_weights
from distill.distillers import Distiller
from distill.errors import UserError
from distill.kinds import fits, kinds_of, said
from distill.mistake import nearest_first
from distill.models.adapters import LogitNetwork
from distill.models.network import Network
from distill.numerics import stream
from distill.types import Shapes, Spec

# what a network's node says beside the arguments of its class
OF_NETWORK = ("label", "weights", "mean", "std", "input_size", "allow_chance", "keep", "keep_in")

Node = Mapping[str, Any]


def check_arguments(node: Node, *, what: str, given: tuple[str, ...] = ()) -> None:
    """Refuse keys that the class of a node does not take, missing ones, and values of another kind, by name.

    Args:
        node: Has `_target_` and keyword arguments.
        what: The group, for the message.
        given: Arguments that the caller adds.

    Raises:
        UserError: If the class cannot be imported, or its signature and the keys differ.
    """
    if "_target_" not in node:
        raise UserError(f"{what} has no _target_: name the class to build, e.g. {what}._target_=package.module.Class.")
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise UserError(
            f"{what}._target_={node['_target_']} cannot be imported: {error.__cause__ or error}."
        ) from error
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:
        return  # built-in classes do not tell
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    # what is given by position takes the first names
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given]
    keys = [k for k in node if not str(k).startswith("_")]
    if unknown := [k for k in keys if k not in known]:
        choices = nearest_first(unknown[0], known)
        raise UserError(f"There is no key {what}.{unknown[0]}: {target.__name__} takes {choices}.")
    needed = [p.name for p in parameters if p.default is p.empty and p.name in known]
    if missing := [k for k in needed if k not in keys]:
        raise UserError(f"{what} lacks {', '.join(missing)}: {target.__name__} needs {', '.join(needed)}.")
    for key, kind in kinds_of(target).items():
        if key in keys and not fits(node[key], kind):
            raise UserError(f"{what}.{key}={node[key]} does not fit: {target.__name__} takes {said(kind)}.")


def build(node: Node, *, what: str, given: tuple[str, ...] = (), arguments: tuple[Any, ...] = ()) -> Any:
    """Instantiate a node after `check_arguments`; its lists and dictionaries arrive as plain Python ones.

    Raises:
        UserError: As `check_arguments`, or as the class itself says.
    """
    check_arguments(node, what=what, given=given)
    try:
        return instantiate(dict(node), *arguments, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:  # Hydra wraps what a constructor raises
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        raise


def build_network(node: Node, *, what: str, num_classes: int, mean: Any, std: Any, seed: int) -> Network:
    """A network as its node says, without its weights.

    Args:
        node: `_target_`, the arguments of that class, and what else `OF_NETWORK` names.
        what: "teacher" or "student": the group for messages, and the random stream of the initial weights, so that
            one seed gives one start whatever else a run draws.
        num_classes: Classes of the data set.
        mean: Mean of the data set per channel, where neither node nor network has its own.
        std: Standard deviation, likewise.
        seed: The run's.

    Raises:
        UserError: If the node does not fit its class, or the network does not answer one logit per class.
    """
    plain = {k: v for k, v in node.items() if k not in OF_NETWORK}
    with stream(seed, what):
        module = build(plain, what=what)
    if not isinstance(module, nn.Module):
        raise UserError(f"{what}._target_={node['_target_']} is no torch.nn.Module.")
    network = module if isinstance(module, Network) else LogitNetwork(module=module)
    preferred = getattr(network, "preferred", lambda: (None, None, None))()
    own_mean, own_std, own_size = (
        node.get(key) or preference for key, preference in zip(("mean", "std", "input_size"), preferred, strict=True)
    )
    network.normalise(mean=own_mean or mean, std=own_std or std, input_size=own_size)
    return network


def shapes(network: Network, *, what: str, num_classes: int, size: int) -> Shapes:
    """Shapes of a network's answer, checked against the classes of the data."""
    found = network.shapes(size)
    if found.logits != num_classes:
        raise UserError(f"{what} answers {found.logits} classes, the data set has {num_classes}.")
    return found


def give_weights(network: Network, path: str | None, *, what: str) -> None:
    """Load weights, strictly, where a path is given; see `distill.checkpoint.load_weights`."""
    if path is not None:
        load_weights(network.published, path, what=what)


def freeze(teacher: Network) -> Network:
    """A teacher that nothing can change: eval mode for good, no parameter with a gradient."""
    teacher.requires_grad_(False)
    teacher.eval()
    # Lightning and careless callers may ask for training mode; BatchNorm statistics must not move
    cast(Any, teacher).train = lambda mode=True: teacher
    return teacher


def build_distiller(node: Node, spec: Spec, *, seed: int) -> Distiller:
    """A method as its node says.

    Raises:
        UserError: If the node does not fit the class, the class is no method, or it needs a teacher and there is none.
    """
    target = get_class(node["_target_"]) if "_target_" in node else None
    if isinstance(target, type) and issubclass(target, Distiller) and target.needs_teacher and spec.teacher is None:
        raise UserError(
            f"distiller {target.__name__} needs a teacher: choose one with teacher=NAME, or distiller=none."
        )
    with stream(seed, "distiller"):
        distiller = build(node, what="distiller", given=("spec",), arguments=(spec,))
    if not isinstance(distiller, Distiller):
        raise UserError(f"distiller._target_={node['_target_']} is no distill.distillers.Distiller.")
    return distiller


def channels_last(module: nn.Module) -> nn.Module:
    """The layout in which convolutions are fastest, on CPUs and GPUs alike."""
    to = cast(Callable[..., nn.Module], module.to)
    return to(memory_format=torch.channels_last)
