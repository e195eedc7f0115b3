"""From the rows of a table to the command lines of its runs. Imports no torch.

A row is what one types after `-m`: values with commas make one run each. `networks=resnet56-resnet20` is short for
`teacher=resnet56 student=resnet20`, so that pairs can be listed.
"""

import itertools
import shlex
from collections.abc import Iterable, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from distill.errors import UserError

PAIR, SEED = "networks", "seed"
TAUGHT = ("teacher", "distiller")
Words = dict[str, str]  # by key: "seed" -> "seed=1", "trainer.x" -> "+trainer.x=2"


def expand(rows: Sequence[str], each: str, given: Sequence[str], *, loader: ConfigLoader | None) -> list[list[str]]:
    """The command lines of a table's runs, none twice: its rows in their order, all with one seed, then with the next.

    Args:
        rows: Of the table; without any the user's words are all there is.
        each: Words of every row; the row's own win.
        given: Words of the user. Values that stand in the table choose the runs that have them, others take the place
            of the table's, and keys that the table does not name are added. A student without teacher
            (`teacher=none`) belongs to every teacher's pair, and gets neither a teacher nor a method.
        loader: Hydra's, for `glob`.

    Raises:
        UserError: If a value is no list of choices.
    """
    parser = OverridesParser.create(config_loader=loader)

    def choices(words: Sequence[str]) -> dict[str, list[Words]]:
        return _choices(parser.parse_overrides(list(words)))

    if not rows:
        return [list(words.values()) for words in _product(choices(given))]
    shared = choices(shlex.split(each))
    jobs = [words for row in rows for words in _product(shared | choices(shlex.split(row)))]
    for alternatives in choices(given).values():
        there = [wanted for wanted in alternatives if any(_has(words, wanted) for words in jobs)]
        others = [wanted for wanted in alternatives if wanted not in there]
        jobs = _chosen(jobs, there) + _changed(jobs, others)
    seeds = list(dict.fromkeys(_value(words, SEED) for words in jobs))
    jobs = sorted(jobs, key=lambda words: seeds.index(_value(words, SEED)))
    unique = {tuple(words.values()): None for words in jobs}
    return [list(words) for words in unique]


def _choices(overrides: Iterable[Override]) -> dict[str, list[Words]]:
    """What each key is set to; of several words for one key the last counts, in the place of the first."""
    found: dict[str, list[Words]] = {}
    for override in overrides:
        name = override.get_key_element()
        key = name.lstrip("+")
        if not override.is_sweep_override():
            words = [str(override.input_line)]
        elif override.is_discrete_sweep():
            words = [f"{name}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line} lists no values: only a search (hydra/sweeper=optuna) draws them.")
        found[key] = [_pair(word) if key == PAIR else {key: word} for word in words]
    return found


def _pair(word: str) -> Words:
    teacher, _, student = word.partition("=")[2].partition("-")
    if not student:
        raise UserError(f"{word} is no pair: write {PAIR}=TEACHER-STUDENT.")
    return {"teacher": f"teacher={teacher}", "student": f"student={student}"}


def _product(choices: dict[str, list[Words]]) -> list[Words]:
    return [
        {key: word for part in parts for key, word in part.items()} for parts in itertools.product(*choices.values())
    ]


def _chosen(jobs: list[Words], alternatives: list[Words]) -> list[Words]:
    """Those that have one of the values, and the students alone of their pairs."""
    kept = [words for words in jobs if any(_has(words, wanted) for wanted in alternatives)]
    if not any("teacher" in wanted for wanted in alternatives):
        return kept
    students = {_value(words, "student") for words in kept}
    return [words for words in jobs if words in kept or (_alone(words) and _value(words, "student") in students)]


def _changed(jobs: list[Words], alternatives: list[Words]) -> list[Words]:
    """Each with every one of the values, in the place of its own."""
    return [
        words | {key: word for key, word in new.items() if not (key.split(".")[0] in TAUGHT and _alone(words))}
        for words in jobs
        for new in alternatives
    ]


def _has(words: Words, wanted: Words) -> bool:
    return all(key in words and _value(words, key) == _value(wanted, key) for key in wanted)


def _value(words: Words, key: str) -> str | None:
    return words[key].partition("=")[2] if key in words else None


def _alone(words: Words) -> bool:
    return _value(words, "teacher") == "none"
