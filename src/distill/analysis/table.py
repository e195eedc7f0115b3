"""One table of all results: mean and standard deviation over seeds, best and last epoch, beside the paper's numbers."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from distill.analysis import page, paper
from distill.analysis.page import NOTHING, Band, Cell, Grid, Page, plain
from distill.analysis.paper import Metric
from distill.analysis.store import Result
from distill.files import CONFIG

FIRST = ("none", "kd")  # the baselines open each pair, other methods follow by name
SPLITS = {"test": "test set", "holdout": "held-out part of the training set"}
KINDS = {"probe": "linear probe"}
UNSTATED = "comes from a protocol that it does not state"
TITLES = {"top1": "top-1", "top5": "top-5"}
DOT = "optimizer=dot"
# experiments that choose networks, methods and lengths, which have their own places in a table
CHOICES = re.compile(r"experiment=((table|figure)\d\w*|flagship|mlkd_480)")


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (n - 1) of some runs; None where there are too few."""

    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Stat":
        """Of the values that are there."""
        there = [value for value in values if value is not None]
        return cls(fmean(there) if there else None, stdev(there) if len(there) > 1 else None)

    def __str__(self) -> str:
        if self.mean is None:
            return NOTHING
        return f"{self.mean:.2f} ± {NOTHING if self.sd is None else format(self.sd, '.2f')}"


@dataclass(frozen=True)
class Row:
    """The runs that differ in nothing but their seed.

    Attributes:
        distiller: The method; with DOT, which is an optimizer, as in "dot+dkd".
        variant: What else was changed of the method's defaults.
    """

    kind: str
    data: str
    epochs: int
    evaluated_on: str
    teacher: str
    student: str
    distiller: str
    variant: str
    runs: tuple[Result, ...]

    @property
    def seeds(self) -> list[int]:
        """Ascending."""
        return sorted(run.seed for run in self.runs)

    @property
    def pair(self) -> str:
        """Teacher and student in words."""
        alone = self.teacher == "none" or self.distiller == "teacher"
        return self.student if alone else f"{self.teacher} → {self.student}"

    @property
    def where(self) -> str:
        """What it is, for sentences about it."""
        return f"{self.data}, {page.epochs(self.epochs)}, {self.pair}, {self.label}"

    @property
    def label(self) -> str:
        """Method and variant in words."""
        return f"{self.distiller} {self.variant}".strip()

    def best(self, metric: Metric) -> Stat:
        """At the epoch of each run's best top-1, in percent."""
        return Stat.of(getattr(run.best, metric) for run in self.runs)

    def last(self, metric: Metric) -> Stat:
        """At each run's last epoch, in percent."""
        return Stat.of(getattr(run.last, metric) for run in self.runs)

    @property
    def agreement(self) -> Stat:
        """With the teacher at the last epoch, in percent."""
        return Stat.of(run.last.agreement for run in self.runs)

    @property
    def teacher_top1(self) -> Stat:
        """The teacher's own accuracy; a spread means that the runs had different teachers."""
        return Stat.of(run.teacher_top1 for run in self.runs)

    @property
    def images_per_second(self) -> Stat:
        """Training throughput."""
        return Stat.of(run.images_per_second for run in self.runs)

    def paper(self, metric: Metric) -> list[tuple[int, float]]:
        """The paper's numbers for this row with their tables, lowest first; a variant is not in the paper."""
        probe = self.kind == "probe"
        asked = (self.data, self.teacher, self.student, self.distiller)
        cells = [] if self.variant else paper.cells(*asked, probe=probe)
        numbers: dict[float, int] = {}
        for cell in cells:
            value = getattr(cell, metric)
            if value is not None and cell.epochs in (None, self._full):
                numbers.setdefault(value, cell.table)
        return [(table, value) for value, table in numbers.items()]

    @property
    def _full(self) -> int | None:
        return paper.EPOCHS.get(self.data)

    @property
    def comparable(self) -> bool:
        """Whether it trained and was measured as the paper's numbers were."""
        return self.epochs == self._full and self.evaluated_on == "test"

    def difference(self, metric: Metric) -> float | None:
        """Mean of the best epochs less the paper's number, which is one of best epochs too."""
        mean, numbers = self.best(metric).mean, self.paper(metric)
        return mean - numbers[0][1] if self.comparable and numbers and mean is not None else None

    def plain(self, metric: Metric) -> dict[str, Any]:
        """All of it as plain data, unrounded."""
        stats = {
            f"best_{metric}": self.best(metric),
            "last_top1": self.last("top1"),
            "last_top5": self.last("top5"),
            "agreement": self.agreement,
            "teacher_top1": self.teacher_top1,
            "images_per_second": self.images_per_second,
        }
        keys = ("kind", "data", "epochs", "evaluated_on", "teacher", "student", "distiller", "variant", "seeds")
        return (
            {key: getattr(self, key) for key in keys}
            | {name: {"mean": stat.mean, "sd": stat.sd} for name, stat in stats.items()}
            | {"paper": [{"table": table, metric: value} for table, value in self.paper(metric)]}
            | {"paper_epochs": self._full, "difference": self.difference(metric)}
            | {"runs": [str(run.path) for run in self.runs]}
        )


def method_of(run: Result) -> tuple[str, str]:
    """A run's method and what was changed of it, as tables name them."""
    words = [word for word in run.variant.split(" ") if not CHOICES.fullmatch(word)]
    dot = DOT in words
    return f"dot+{run.distiller}" if dot else run.distiller, " ".join(word for word in words if word != DOT)


def group(results: Iterable[Result]) -> tuple[list[Row], list[str]]:
    """Rows in the order they are shown, and what a reader must know of how they came about.

    Of runs with the same seed and the same configuration the newest counts, once.
    """
    groups: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for run in results:
        key = (run.kind, run.data, run.epochs, run.evaluated_on, run.teacher, run.student, *method_of(run))
        groups[key].append(run)
    rows, notes = [], []
    for key, runs in groups.items():
        unique, said = _unique(runs)
        row = Row(*key, runs=tuple(sorted(unique, key=lambda run: (run.seed, run.path))))
        where = f"{row.where}: "
        notes += [where + note for note in said]
        if (spread := row.teacher_top1.sd) is not None and not math.isclose(spread, 0, abs_tol=1e-6):
            notes.append(where + "the runs had teachers of different accuracy.")
        rows.append(row)
    return sorted(rows, key=_order), sorted(notes)


def _unique(runs: list[Result]) -> tuple[list[Result], list[str]]:
    """One run of each seed, a probe's and its network's together: repetitions are no further seeds."""
    seeds: dict[tuple[int, Any], list[Result]] = defaultdict(list)
    for run in runs:
        seeds[run.seed, run.content.get("probe", {}).get("source_seed")].append(run)
    counting, notes = [], []
    for (seed, _), repeated in seeds.items():
        # evidence that came with the code is as new as the checkout; a run that was made here goes before it
        chosen = max(repeated, key=lambda run: (run.path.with_name(CONFIG).exists(), run.written))
        counting.append(chosen)
        if any(run.hash is None or run.hash != chosen.hash for run in repeated if run is not chosen):
            notes.append(f"seed {seed} was run with different configurations; {chosen.path} is the newest, and counts.")
        elif any((run.best, run.last) != (chosen.best, chosen.last) for run in repeated):
            notes.append(
                f"seed {seed} was run more than once with one configuration; {chosen.path} is the newest, and counts."
            )
    return counting, sorted(notes)


def _order(row: Row) -> tuple[Any, ...]:
    rank = FIRST.index(row.distiller) if row.distiller in FIRST else len(FIRST)
    section = (row.kind != "train", row.data, row.evaluated_on != "test", -row.epochs)
    return *section, _natural(row.student), row.teacher != "none", _natural(row.teacher), rank, row.label


def _natural(name: str) -> list[tuple[int, str]]:
    """For sorting resnet8 before resnet20."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name) if part]


def overview(rows: list[Row], notes: Iterable[str] = (), *, metric: Metric = "top1") -> Page:
    """All rows, with one grid per data set, length of training and split."""
    other: Metric = "top5" if metric == "top1" else "top1"
    sections: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        sections[row.kind, row.data, row.epochs, row.evaluated_on].append(row)
    columns = (
        "pair",
        "method",
        "seeds",
        f"best {TITLES[metric]}",
        f"last {TITLES[metric]}",
        f"last {TITLES[other]}",
        "agreement",
        "paper",
        "difference",
        "teacher",
        "images/s",
    )
    grids = []
    for (kind, data, epochs, split), members in sections.items():
        heading = data if kind == "train" else f"{KINDS[kind]}, {data}"
        below = []
        if any(row.paper(metric) and not row.comparable for row in members):
            why = UNSTATED if kind == "probe" else f"is for {paper.EPOCHS[data]} epochs and the test set"
            below.append(f"* The paper's number {why}; no difference is taken.")
        band = Band("", tuple(_line(row, metric, other) for row in members))
        title = f"{heading}, {page.epochs(epochs)}, {SPLITS.get(split, split)}"
        grids.append(Grid(title, columns, 2, (band,), tuple(below)))
    legend = (
        "Mean ± sample standard deviation over seeds, in percent; the best epoch is that of the best top-1. The "
        f"difference is the best {TITLES[metric]} less the paper's."
    )
    return Page("", tuple(grids), (legend,), remarks=tuple(notes))


def markdown(rows: list[Row], notes: Iterable[str] = (), *, metric: Metric = "top1") -> str:
    """`overview` as Markdown."""
    return page.markdown(overview(rows, notes, metric=metric))


def signed(difference: float | None) -> str:
    """A difference in points."""
    return NOTHING if difference is None else f"{round(difference, 2) + 0.0:+.2f}"  # + 0.0: no "-0.00"


def _line(row: Row, metric: Metric, other: Metric) -> tuple[Cell, ...]:
    numbers = row.paper(metric)
    printed = NOTHING
    if numbers:
        printed = f"{numbers[0][1]:.2f}" + ("" if row.comparable else "*")
        printed += "".join(f" (Table {table}: {value:.2f})" for table, value in numbers[1:])
    speed, teacher = row.images_per_second.mean, row.teacher_top1.mean
    cells = (
        row.pair,
        row.label,
        str(len(row.runs)),
        str(row.best(metric)),
        str(row.last(metric)),
        str(row.last(other)),
        str(row.agreement),
        printed,
        signed(row.difference(metric)),
        NOTHING if teacher is None else f"{teacher:.2f}",
        NOTHING if speed is None else f"{speed:.0f}",
    )
    return tuple(map(plain, cells))
