"""Finds what finished runs have written: `result.json`, and `metrics.csv` beside it."""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.files import METRICS, RESULT

FORMAT = 1


@dataclass(frozen=True)
class Score:
    """Test or holdout scores at one epoch, in percent.

    Attributes:
        epoch: Counts from 1.
        top1: Accuracy.
        top5: Accuracy; None where it was not measured.
        agreement: How often student and teacher name the same class; None without a teacher.
    """

    epoch: int
    top1: float
    top5: float | None
    agreement: float | None


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        path: Its result.json.
        kind: "train" for a training run, "probe" for a linear probe of a frozen network's features.
        written: When that was written, in seconds since 1970; of kept evidence as it says itself.
        data: Name of the data set.
        teacher: Name of the teacher, "none" without one.
        student: Name of the student.
        distiller: Name of the method.
        variant: The other overrides that matter, sorted and joined by spaces; "" for none.
        seed: The run's.
        epochs: How many it trained for.
        evaluated_on: "test" or "holdout".
        best: Scores at the epoch of the best top-1.
        last: Scores at the last epoch.
        teacher_top1: The teacher's own top-1 in percent on the same images; None without one.
        images_per_second: Training throughput.
        hash: Of the whole configuration.
        content: All of result.json.
    """

    path: Path
    kind: str
    written: float
    data: str
    teacher: str
    student: str
    distiller: str
    variant: str
    seed: int
    epochs: int
    evaluated_on: str
    best: Score
    last: Score
    teacher_top1: float | None
    images_per_second: float | None
    hash: str | None
    content: dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A result.json that counts for nothing, and why."""

    path: Path
    reason: str


def find_results(folders: Iterable[str | Path]) -> tuple[list[Result], list[Skipped]]:
    """All finished runs below some folders, each once, and what was passed over; in the folders' order, then by path.

    Args:
        folders: Searched to any depth, symbolic links to folders not followed; a result.json itself may be given too.
            One that is absent holds nothing.
    """
    paths: dict[Path, Path] = {}
    for folder in map(Path, folders):
        for path in [folder] if folder.name == RESULT else sorted(folder.rglob(RESULT)):
            if path.is_file():
                paths.setdefault(path.resolve(), path)  # folders may overlap
    results, skipped = [], []
    for path in paths.values():
        try:
            results.append(_read(path))
        except _UnusableError as error:
            skipped.append(Skipped(path, str(error)))
    return results, skipped


class _UnusableError(Exception):
    pass


def _read(path: Path) -> Result:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _UnusableError(f"it cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise _UnusableError(f"its format is {found}, this version reads {FORMAT}")
    if content.get("status") != "finished":
        raise _UnusableError(f"its run is not finished but {content.get('status')}")
    try:
        names = content["names"]
        return Result(
            path=path,
            kind=content.get("kind", "train"),
            written=float(content.get("written") or path.stat().st_mtime),
            data=names["data"],
            teacher=names["teacher"] or "none",
            student=names["student"] or "none",
            distiller=names["distiller"],
            variant=content.get("variant") or "",
            seed=int(content["seed"]),
            epochs=int(content["epochs"]),
            evaluated_on=content["evaluated_on"],
            best=_score(content["best"]),
            last=_score(content["last"]),
            teacher_top1=_number((content.get("teacher") or {}).get("top1")),
            images_per_second=_number(content.get("images_per_second")),
            hash=content.get("hash"),
            content=content,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else f"a value is not what it should be ({error})"
        raise _UnusableError(what) from error


def _score(entry: Mapping[str, Any]) -> Score:
    return Score(
        epoch=int(entry["epoch"]),
        top1=float(entry["top1"]),
        top5=_number(entry.get("top5")),
        agreement=_number(entry.get("agreement")),
    )


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(float(value)) else float(value)


def read_curve(result: Result, metric: str = "top1") -> dict[int, float]:
    """Accuracy by epoch in percent, from the metrics.csv beside a result.json; {} where there is none."""
    path = result.path.parent / METRICS
    if not path.is_file():
        return {}
    column = f"{result.evaluated_on}/{metric}"
    with path.open(newline="") as file:
        rows = [(row.get("epoch"), row.get(column)) for row in csv.DictReader(file)]
    # loggers leave blanks where a row has no such value
    return {int(float(epoch)): float(value) for epoch, value in rows if epoch and value}
