"""What the entry scripts share; imports no torch, so that --help and Tab answer at once."""

import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf

from distill import zoo
from distill.data.layout import classes_in
from distill.errors import UserError

T = TypeVar("T")

LONGEST_NAME = 120


def scaled(value: Any, *, _root_: DictConfig) -> Any:
    """Milestones and warm-ups of a recipe, shrunk to fewer epochs than its full length, never stretched to more."""
    recipe = _root_.recipe
    factor = min(1.0, recipe.epochs / recipe.full_epochs)
    if isinstance(value, list | ListConfig):
        return [v * factor for v in value]
    return value * factor


def folder_name(text: str) -> str:
    """What ran, as a folder name that every file system takes: `distiller=kd,seed=1` to `distiller=kd,seed=1`."""
    name = re.sub(r"[^\w.,=+-]+", "_", text).strip("._") or "default"
    if len(name) <= LONGEST_NAME:
        return name
    # two long names that differ late must not meet
    import hashlib

    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def offer() -> None:
    """Register networks and resolvers, and let `-cd FOLDER` bring its own Python modules."""
    zoo.offer()
    OmegaConf.register_new_resolver("scaled", scaled, replace=True)
    OmegaConf.register_new_resolver("classes_in", classes_in, replace=True)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("either", lambda first, second: first or second, replace=True)
    for flag, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, _, attached = flag.partition("=")
        if name in ("-cd", "--config-dir"):
            sys.path.insert(0, attached or value)


def speak(run: Callable[[], T]) -> T:
    """Run, and say a user's mistake in its one sentence, without a traceback."""
    try:
        return run()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
