"""Hydra's errors about a command line, in one sentence that names what would be right. Imports no torch."""

import difflib
import re
from collections.abc import Iterable

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException, SearchPathException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from distill.zoo import absent

# what Hydra raises before a job begins; inside jobs its errors stand for defects, whose tracebacks matter
BEFORE_A_JOB = (ConfigCompositionException, OverrideParseException, SearchPathException)
IN_OUR_WORDS = {
    r"Ambiguous value for argument '(.*?)' 1\.": r"\1 has several values: add -m for one run of each, or write [a,b].",
    r"Could not append .* already at '(.*?)'": r"\1 has a value already: leave out the + to change it.",
    r"Error resolving interpolation '\$\{distiller\}": "data, teacher, student and distiller take one name, no list.",
}


def nearest_first(name: str, choices: Iterable[str]) -> str:
    """All choices in a row, those that look like `name` first."""
    names = list(choices)
    close = difflib.get_close_matches(name, names)
    return ", ".join([*close, *(choice for choice in names if choice not in close)])


def sentence(error: Exception) -> str:
    """What a user did wrong, and what would be right.

    Args:
        error: One of `BEFORE_A_JOB`.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group in ("teacher", "student") and (known := absent(name)):
            return f"{group}={name} is unknown: {known}"
        return f"{group}={name} is unknown: choose one of {nearest_first(name, error.options)}."
    if isinstance(error, OverrideParseException):
        lines = str(error).splitlines()
        why = next((line for line in lines if not line.startswith("Error parsing")), "")
        return f"{error.override} cannot be read ({why}): write key=value, and quote special characters: 'key=\"a=b\"'."
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return _no_key(str(cause.full_key), cause.parent_node)
    text = " ".join(f"{error} {cause or ''}".split())
    for pattern, better in IN_OUR_WORDS.items():
        if found := re.match(pattern, text):
            return found.expand(better)
    return text if text.endswith(".") else f"{text}."


def _no_key(key: str, parent: object) -> str:
    place, _, name = key.rpartition(".")
    known = [str(k) for k in parent if k not in ("_target_", "hydra")] if isinstance(parent, DictConfig) else []
    if not known:
        return f"{key} cannot be set: {place} is a single value, or none."
    return f"There is no key {key}: {place or 'the configuration'} has {nearest_first(name, known)}."
