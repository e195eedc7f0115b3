"""From plain configuration nodes to objects: networks with their weights, methods with their shapes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
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


def build_network(
    node: Node, *, what: str, num_classes: int, mean: Any, std: Any, seed: int, size: int | None = None
) -> Network:
    """A network as its node says, without its weights.

    Args:
        node: `_target_`, the arguments of that class, and what else `OF_NETWORK` names. A class that takes
            `input_size` is built for it.
        what: "teacher" or "student": the group for messages, and the random stream of the initial weights, so that
            one seed gives one start whatever else a run draws.
        num_classes: Classes of the data set.
        mean: Mean of the data set per channel, where neither node nor network has its own.
        std: Standard deviation, likewise.
        seed: The run's.
        size: At which it looks at images, in px, where neither node nor network says; None: as they come.

    Raises:
        UserError: If the node does not fit its class, or the network does not answer one logit per class.
    """
    plain = {k: v for k, v in node.items() if k not in OF_NETWORK}
    if _takes(node, "input_size"):
        plain["input_size"] = node.get("input_size")
    with stream(seed, what):
        module = build(plain, what=what)
    if not isinstance(module, nn.Module):
        raise UserError(f"{what}._target_={node['_target_']} is no torch.nn.Module.")
    network = module if isinstance(module, Network) else LogitNetwork(module=module)
    preferred = getattr(network, "preferred", lambda: (None, None, None))()
    own_mean, own_std, own_size = (
        node.get(key) or preference for key, preference in zip(("mean", "std", "input_size"), preferred, strict=True)
    )
    network.normalise(mean=own_mean or mean, std=own_std or std, input_size=own_size or size)
    return network


def _takes(node: Node, argument: str) -> bool:
    try:
        return argument in inspect.signature(get_object(node["_target_"])).parameters
    except Exception:  # no such class, or one that does not tell: `check_arguments` says so
        return False


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


def methods_in(node: Node) -> dict[str, Any]:
    """What a method's node has where its class takes other methods, by place: `host`, or `terms.kd`.

    The annotations of the class decide: a `Distiller`, or a mapping of names to them.
    """
    found: dict[str, Any] = {}
    for key, kind in kinds_of(get_object(node["_target_"])).items():
        if key not in node:
            continue
        value, arguments = node[key], get_args(kind)
        if _is_method(kind):
            found[key] = value
        elif arguments and _is_method(arguments[-1]):
            named = value if isinstance(value, Mapping) else {str(value): value}
            found |= {f"{key}.{name}": part for name, part in named.items()}
    return found


def _is_method(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Distiller)


def check_method(node: Node, *, what: str = "distiller") -> None:
    """`check_arguments` of a method, and of the methods in it.

    Raises:
        UserError: As there, or if something else stands where a method must.
    """
    check_arguments(node, what=what, given=("spec",))
    for place, part in methods_in(node).items():
        where = f"{what}.{place}"
        if not isinstance(part, Mapping) or "_target_" not in part:
            right = f"distiller@{where}=NAME"
            if "." in place:  # one of many
                right = f"+{right}, or take it out with ~{where}"
            raise UserError(f"{where}={part} is no method: choose one with {right}.")
        check_method(part, what=where)


def build_distiller(node: Node, spec: Spec, *, seed: int, what: str = "distiller") -> Distiller:
    """A method as its node says; methods in it are built before, each from the same `spec`.

    Raises:
        UserError: If the node does not fit the class, the class is no method, or it needs a teacher and there is none.
    """
    check_arguments(node, what=what, given=("spec",))
    target = get_object(node["_target_"])
    if not _is_method(target):
        raise UserError(f"{what}._target_={node['_target_']} is no distill.distillers.Distiller.")
    if target.needs_teacher and spec.teacher is None:
        raise UserError(
            f"distiller {target.__name__} needs a teacher: choose one with teacher=NAME, or distiller=none."
        )
    parts: dict[str, Any] = {}
    for place, part in methods_in(node).items():
        key, _, name = place.partition(".")
        built = build_distiller(part, spec, seed=seed, what=f"{what}.{place}")
        parts[key] = {**parts.get(key, {}), name: built} if name else built
    own = {key: value for key, value in node.items() if key not in parts}
    make = build({**own, "_partial_": True}, what=what, given=("spec", *parts))
    with stream(seed, "distiller"):  # also for a part: alone or in another method, it has the same start
        distiller: Distiller = make(spec, **parts)
    return distiller


def channels_last(module: nn.Module) -> nn.Module:
    """The layout in which convolutions are fastest, on CPUs and GPUs alike."""
    to = cast(Callable[..., nn.Module], module.to)
    return to(memory_format=torch.channels_last)
