"""Whether a value of the configuration is of the kind that a signature asks for."""

import inspect
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

PLAIN = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", NoneType: "null"}


def kinds_of(target: Any) -> dict[str, Any]:
    """The annotations of what a class or function is called with; {} where they cannot be read."""
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        return {}


def fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of a kind; True where the kind says nothing of plain values."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(value, Mapping) and "_target_" in value:
        return True  # an object to be
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if (origin or kind) in (list, tuple, Sequence):
        of_one_kind = len(arguments) == 1 or arguments[1:] == (...,)
        whole = isinstance(value, list | tuple)
        return whole and (not of_one_kind or all(fits(one, arguments[0]) for one in value))
    if kind not in PLAIN:
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def said(kind: Any) -> str:
    """A kind, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(said(one) for one in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if (origin or kind) in (list, tuple, Sequence):
        return f"a list, of {said(arguments[0])} each" if arguments else "a list"
    return PLAIN.get(kind, str(getattr(kind, "__name__", kind)))
