"""Our runs in the paper's own layout, beside its numbers: what `scripts/table.py --table N` prints."""

from dataclasses import dataclass
from typing import Any

from distill.analysis import page, paper
from distill.analysis.layout import ABLATION, PROBES, TERMS, TITLES, Layout, Slot, layout
from distill.analysis.missing import SEEDS, commands
from distill.analysis.page import NOTHING, Band, Cell, Grid, Page, Text
from distill.analysis.table import Row, Stat, signed

STRENGTH = 1.0  # points by which a teacher may differ from the paper's before a difference says nothing of the method
CE = "distiller.ce_weight"
WEIGHTS = {f"distiller.{term}_weight": term for term in TERMS}


@dataclass(frozen=True)
class Filled:
    """A place, and what we have for it.

    Attributes:
        slot: The place.
        row: Our runs; None for none, and for a teacher, which other runs measured.
        teacher: A teacher's own accuracy as our runs of the column measured it.
        why_not: Why the numbers cannot be compared; nothing where they can.
    """

    slot: Slot
    row: Row | None = None
    teacher: Stat | None = None
    why_not: tuple[str, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """Of our runs."""
        return [] if self.row is None else self.row.seeds

    @property
    def best(self) -> Stat:
        """Ours at the best epochs."""
        if self.row is not None:
            return self.row.best(self.slot.metric)
        return Stat(None, None) if self.teacher is None else self.teacher

    @property
    def difference(self) -> float | None:
        """Ours at the best epochs less the paper's, where both were obtained alike."""
        mean, printed = self.best.mean, self.slot.printed
        return None if mean is None or printed is None or self.why_not else mean - printed

    def plain(self) -> dict[str, Any]:
        """All of it, unrounded."""
        slot, last = self.slot, None if self.row is None else self.row.last(self.slot.metric)
        content: dict[str, Any] = {
            key: getattr(slot, key) for key in ("data", "teacher", "student", "method", "metric")
        }
        content |= {"probe": slot.probe, "terms": None if slot.terms is None else sorted(slot.terms)}
        content["ours"] = {
            "best": {"mean": self.best.mean, "sd": self.best.sd},
            "last": None if last is None else {"mean": last.mean, "sd": last.sd},
            "seeds": self.seeds,
        }
        content["paper"] = {
            "printed": slot.printed,
            "epochs": slot.epochs,
            "reproduced_by_paper": slot.reproduced,
            "instead_of": slot.instead_of,
            "doubts": slot.doubts,
        }
        return content | {"difference": self.difference, "not_comparable": list(self.why_not)}


@dataclass(frozen=True)
class Sheet:
    """A table of the paper with our numbers in it.

    Attributes:
        layout: The places.
        cells: What is in them, row by row, in the layout's order.
        epochs: The length of training that was asked for; None for the paper's.
        teacher: The teacher that was asked for.
        student: Likewise.
    """

    layout: Layout
    cells: tuple[Filled, ...]
    epochs: int | None = None
    teacher: str | None = None
    student: str | None = None

    def plain(self) -> dict[str, Any]:
        """All of it, unrounded."""
        rows, places = [], iter(self.cells)
        for group in self.layout.groups:
            for line in group.lines:
                rows.append(
                    {"group": group.title, "label": line.label, "cells": [next(places).plain() for _ in line.slots]}
                )
        return {"table": self.layout.table, "columns": list(self.layout.columns), "rows": rows, "missing": self.missing}

    @property
    def missing(self) -> list[str]:
        """Commands that would fill what is empty or has too few seeds."""
        wanted = [(cell.slot, cell.seeds) for cell in self.cells]
        wanted = [item for item in wanted if item[0].probe or item[0].method != "teacher"]
        return commands(self.layout.table, wanted, epochs=self.epochs, teacher=self.teacher, student=self.student)


def fill(
    table: int, rows: list[Row], *, teacher: str | None = None, student: str | None = None, epochs: int | None = None
) -> Sheet:
    """A table of the paper filled with our runs on the test set.

    Args:
        table: 1 to 11.
        rows: All of ours; what does not belong is passed over.
        teacher: As `layout`.
        student: As `layout`.
        epochs: Take runs of this length; None for the paper's. No difference is taken of other lengths.

    Raises:
        UserError: As `layout`.
    """
    places = layout(table, teacher=teacher, student=student)
    rows = [row for row in rows if row.evaluated_on == "test"]
    if table == ABLATION:
        rows = _ablations(rows)
    # a teacher alone is printed for each of its pairs, wherever a run has measured it
    cells = tuple(_filled(slot, rows, epochs) for slot in places.slots)
    return Sheet(places, cells, epochs, teacher, student)


def _filled(slot: Slot, rows: list[Row], epochs: int | None) -> Filled:
    if slot.method == "teacher" and not slot.probe:
        measured = [
            row.teacher_top1.mean if slot.metric == "top1" else _teacher_top5(row)
            for row in rows
            if row.kind == "train"
            and not _of_a_part(row)  # other test images
            and row.data == slot.data
            and paper.same_network(row.teacher, slot.teacher, slot.data)
        ]
        return Filled(slot, teacher=Stat(Stat.of(measured).mean, None))
    length = epochs or slot.epochs or paper.EPOCHS.get(slot.data)
    # a probe's variant names the length of its network's training where that is not the usual one
    variant = f"recipe.epochs={epochs}" if slot.probe and slot.method != "teacher" and epochs is not None else ""
    fits = [row for row in rows if _belongs(row, slot, variant) and (slot.probe or row.epochs == length)]
    if not fits:
        return Filled(slot)
    row = max(fits, key=lambda row: (not _of_a_part(row), len(row.runs)))
    return Filled(slot, row, why_not=tuple(_why_not(row, slot)))


def _teacher_top5(row: Row) -> float | None:
    return Stat.of((run.content.get("teacher") or {}).get("top5") for run in row.runs).mean


def _belongs(row: Row, slot: Slot, variant: str) -> bool:
    if row.data != slot.data or (row.kind == "probe") != slot.probe:
        return False
    changed = " ".join(word for word in row.variant.split(" ") if word != paper.PART) if slot.probe else row.variant
    if slot.terms is None and (changed != variant or not paper.same_method(row.distiller, slot.method)):
        return False
    if slot.terms is not None and _terms(row) != slot.terms:
        return False
    named = {"teacher": slot.teacher, "student": slot.student}
    if slot.method in ("student_baseline", "teacher"):
        del named["teacher" if slot.method == "student_baseline" else "student"]
    return all(paper.same_network(getattr(row, role), name, slot.data) for role, name in named.items())


def _of_a_part(row: Row) -> bool:
    """Whether a run had a part of its data set only; a probe of one serves until there is one of all of it."""
    return paper.PART in row.variant.split(" ")


def _terms(row: Row) -> frozenset[str] | None:
    """Which of MCLD's terms a run had; None where anything else of the method was changed."""
    words = dict(word.split("=", 1) for word in row.variant.split(" ") if "=" in word)
    if row.distiller != "mcld" or not words.keys() <= {CE, *WEIGHTS}:
        return None
    return frozenset(term for name, term in WEIGHTS.items() if float(words.get(name, 1)) != 0)


def _ablations(rows: list[Row]) -> list[Row]:
    """Runs that differ in the three terms alone: without cross-entropy, as the paper's, wherever there are such.

    For some teachers cross-entropy is on by default, and only those that say otherwise are without it.
    """
    without = {
        (r.data, r.epochs, r.teacher, r.student) for r in rows if _terms(r) is not None and f"{CE}=0" in r.variant
    }
    return [
        row
        for row in rows
        if _terms(row) is None
        or f"{CE}=0" in row.variant
        or ((row.data, row.epochs, row.teacher, row.student) not in without and CE not in row.variant)
    ]


def _why_not(row: Row, slot: Slot) -> list[str]:
    """Why a difference would say nothing of the method."""
    reasons = []
    full = slot.epochs or paper.EPOCHS.get(slot.data)
    if slot.instead_of is not None:
        reasons.append(f"No difference is taken: the paper's number is of {slot.instead_of}.")
    if slot.probe:
        reasons.append("No difference is taken: the paper does not state how it trained the classifier.")
    if slot.probe and _of_a_part(row):
        images = row.runs[0].content["probe"]["training_images"]
        reasons.append(f"Ours learnt on a part of the data set, {images:,} images.")
    if slot.probe and len(row.runs) > len({run.content.get("probe", {}).get("source_hash") for run in row.runs}):
        reasons.append("Ours has seeds of the classifier alone: one network was probed again and again.")
    if full is not None and row.epochs != full:
        reasons.append(f"No difference is taken: ours trained for {page.epochs(row.epochs)}, the paper's for {full}.")
    theirs = next(
        (
            record["top1"]
            for record in paper.records()
            if record["method"] == "teacher"
            and record["dataset"] == slot.data
            and "protocol" not in record
            and paper.same_network(row.teacher, record["teacher"], slot.data)
        ),
        None,
    )
    ours = row.teacher_top1.mean
    if theirs is not None and ours is not None and abs(ours - theirs) > STRENGTH:
        reasons.append(f"No difference is taken: our {row.teacher} has {ours:.2f}, the paper's {theirs:.2f}.")
    return reasons


# ---------------------------------------------------------------------- as a page


class _Notes:
    """Numbers sentences in the order in which they are first needed."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def of(self, sentences: list[str]) -> tuple[int, ...]:
        return tuple(sorted(self.numbers.setdefault(sentence, len(self.numbers) + 1) for sentence in sentences))


def report(sheet: Sheet) -> Page:
    """A filled table as it is printed."""
    notes, places, bands = _Notes(), iter(sheet.cells), []
    for group in sheet.layout.groups:
        rows = []
        for line in group.lines:
            filled = [next(places) for _ in line.slots]
            printed = [cell.slot for cell in filled if cell.slot.printed is not None]
            again = bool(printed) and all(slot.reproduced for slot in printed)
            label = (Text(line.label + "*" * again, "label"),)
            rows.append((label, *(_cell(cell, notes, again) for cell in filled)))
        bands.append(Band(group.title, tuple(rows)))
    length = "" if sheet.epochs is None else f", {page.epochs(sheet.epochs)}"
    number = sheet.layout.table
    pair = f", {PROBES[number]}" if number in PROBES and not _moved(sheet) else ""
    title = f"Table {number}: {TITLES[number]}{pair}{length}"
    grid = Grid("", ("", *sheet.layout.columns), 1, tuple(bands))
    missing = sheet.missing
    return Page(
        title,
        (grid,),
        tuple(_legend(sheet)),
        tuple(notes.numbers),
        tuple(paper.remarks(number)) if not _moved(sheet) else (),
        tuple(missing),
        "Still missing",
    )


def _moved(sheet: Sheet) -> bool:
    return any(slot.instead_of for slot in sheet.layout.slots)


def _legend(sheet: Sheet) -> list[str]:
    probe = sheet.layout.table in PROBES
    lines = [
        "In each cell, in percent: our best epoch, as mean ± sample standard deviation over seeds (number of seeds); "
        "our last epoch; the paper's number (MCLD, arXiv 2411.10693v1); our best less the paper's. "
        f"{NOTHING} is what does not exist yet.",
        _origin(sheet),
    ]
    if not probe and any(slot.method == "teacher" for slot in sheet.layout.slots):
        lines.append(
            "A teacher's own number is what our runs measured of it; the paper's, and that of a student alone, is "
            "taken from whichever of its tables prints it."
        )
    if sheet.layout.table == ABLATION:
        lines.append("Without cross-entropy, as in the paper.")
    if sheet.missing:
        lines.append(f"The paper averages {len(SEEDS)} runs: what has fewer seeds is listed as missing.")
    return lines


def _origin(sheet: Sheet) -> str:
    records = [slot.record for slot in sheet.layout.slots if slot.record is not None]
    if any(record.get("reproduced_by_paper") for record in records):
        return (
            "* The paper's authors ran it again themselves; else it is their own method, or copied from earlier work."
        )
    return "The paper does not say here which numbers its authors ran themselves."


def _cell(cell: Filled, notes: _Notes, again: bool) -> Cell:
    slot, lines = cell.slot, []
    if cell.best.mean is None:
        lines.append(Text(NOTHING, "nothing"))
    elif cell.row is None:
        lines.append(Text(f"{cell.best.mean:.2f}", "ours"))
    else:
        lines.append(Text(f"{cell.best} ({len(cell.row.runs)})", "ours"))
        lines.append(Text(f"last {cell.row.last(slot.metric)}", "last"))
    if slot.printed is None:
        lines.append(Text(f"paper {NOTHING}", "paper"))
        return tuple(lines)
    numbers = notes.of([*slot.doubts, *cell.why_not])
    mark = "*" if slot.reproduced and not again else ""
    lines.append(Text(f"paper {slot.printed:.2f}{mark}", "paper", numbers))
    if cell.difference is not None:
        lines.append(Text(signed(cell.difference), "difference"))
    return tuple(lines)
