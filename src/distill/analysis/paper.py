"""The published numbers of the MCLD paper (arXiv 2411.10693v1, Tables 1-11), under this project's names."""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from distill import zoo

Metric = Literal["top1", "top5"]

# the epochs of the paper's settings: what a run must have trained for to be set against its number
EPOCHS = {"cifar100": 240, "imagenet": 100}
# what the networks of Tables 8 and 9 have learned before they are probed
PROBED = "cifar100"
# in the variant of a probe that learnt on a part of its data set
PART = "data.complete=false"

METHODS = {
    "KD": "kd",
    "CTKD": "ctkd",
    "CTKD+KD": "ctkd",  # CTKD is KD with a learned temperature: two names of one method in the tables
    "DKD": "dkd",
    "DOT+DKD": "dot+dkd",
    "LSKD+DKD": "lskd+dkd",
    "LSKD+MLKD": "lskd+mlkd",
    "MCLD": "mcld",
    "FitNet": "fitnet",
    "AT": "at",
    "RKD": "rkd",
    "CRD": "crd",
    "OFD": "ofd",
    "ReviewKD": "reviewkd",
    "SimKD": "simkd",
    "CAT-KD": "catkd",
    "student_baseline": "none",
    "teacher": "teacher",
    "MCLD-ablation": "ablation",  # Table 7; only `ablation` reads it
}


@dataclass(frozen=True)
class Cell:
    """One number of the paper.

    Attributes:
        table: Which table it stands in.
        top1: Percent.
        top5: Percent, where the paper gives it.
        epochs: Where the paper states them.
        reproduced: Whether the authors ran it themselves; otherwise it is copied from earlier papers.
    """

    table: int
    top1: float
    top5: float | None
    epochs: int | None
    reproduced: bool | None


@cache
def _file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files("distill.analysis").joinpath(name).read_text())
    return content


def records(table: int | None = None) -> list[dict[str, Any]]:
    """The printed numbers, of one table or of all, in the paper's order."""
    found: list[dict[str, Any]] = _file("paper_tables.json")["records"]
    return [record for record in found if table in (None, record["table"])]


def doubts(record: dict[str, Any], metric: Metric = "top1") -> list[str]:
    """Why a printed number should be read with care, one sentence each; most have none.

    Beside what other publications say, these are the paper's own contradictions: gains that do not follow from its
    rows, and tables that disagree.
    """
    of = {**record, "metric": metric}
    found = [
        doubt["says"]
        for doubt in _file("doubts.json")["doubts"]
        if all(of.get(key) == value for key, value in doubt.items() if key != "says")
    ]
    cell = {key: record[key] for key in ("table", "teacher", "student")}
    for check in _file("paper_tables.json")["delta_checks"]:
        if record["method"] == "MCLD" and not check["ok"] and cell.items() <= check.items():
            printed, true = check["delta_printed"], check["delta_recomputed"]
            found.append(
                f"The paper prints a gain of {printed:+.2f}; by its rows it is {true:+.2f} ({check['against']})."
            )
    same = {key: record.get(key) for key in ("dataset", "teacher", "student", "method", "protocol")}
    others = [
        f"Table {other['table']} has {other['top1']:.2f}"
        for other in records()
        if same == {key: other.get(key) for key in same}
        and record["table"] != other["table"]
        and record["top1"] != other["top1"]
        and None in (record.get("epochs"), other.get("epochs"))
    ]
    return found + [f"{'; '.join(others)} for the same cell."] * bool(others)


def remarks(table: int) -> list[str]:
    """What a reader should know of a whole table."""
    return [remark["says"] for remark in _file("doubts.json")["remarks"] if remark["table"] == table]


def same_network(ours: str | None, theirs: str | None, data: str) -> bool:
    """Whether a printed name, which means different networks on different data, is the network that we call `ours`."""
    entry = zoo.by_paper(theirs, data) if theirs else None
    return ours == theirs or (entry is not None and entry.name == ours)


def same_method(ours: str, theirs: str) -> bool:
    """Whether a printed method is what the distiller group (and DOT, as "dot+dkd") calls `ours`."""
    return set(re.split(r"[+_-]", ours)) == set(METHODS[theirs].split("+"))


def cells(data: str, teacher: str, student: str, method: str, *, probe: bool = False) -> list[Cell]:
    """Every number that the paper prints for one cell: repeated tables sometimes disagree.

    Args:
        data: "cifar100", "imagenet"; with `probe` "stl10" or "tiny_imagenet".
        teacher: As in the catalogue; any where the method is "none" or "teacher".
        student: As in the catalogue; any where the method is "teacher".
        method: As the distiller group has it. Two together as "dot+dkd", in either order. "none" is the student
            alone, "teacher" the teacher.
        probe: Whether a linear probe of frozen CIFAR-100 features is meant (Tables 8 and 9).

    Returns:
        The lowest table first, and within it the paper's own number of epochs. A network alone that the paper only
        has as a teacher is found there.
    """
    found = []
    for record in records():
        if record["dataset"] != data or ("protocol" in record) != probe or not same_method(method, record["method"]):
            continue
        named = {"teacher": teacher, "student": student}
        if method in ("none", "teacher"):
            del named["teacher" if method == "none" else "student"]  # one network alone
        if any(record[role] is not None and not same_network(name, record[role], data) for role, name in named.items()):
            continue
        fields = [record.get(key) for key in ("epochs", "reproduced_by_paper")]
        found.append(Cell(record["table"], record["top1"], record["top5"], *fields))
    if not found and method == "none" and not probe:
        return cells(data, student, student, "teacher")
    return sorted(found, key=lambda cell: (cell.table, cell.epochs not in (None, EPOCHS.get(data))))


def published(
    data: str, teacher: str, student: str, method: str, *, metric: Metric = "top1", probe: bool = False
) -> float | None:
    """The paper's number for one cell in percent, or None; see `cells`, of which it is the first."""
    found = cells(data, teacher, student, method, probe=probe)
    return getattr(found[0], metric) if found else None


def pairs(data: str) -> list[tuple[str, str]]:
    """Every teacher and student that the paper's tables set against each other on a data set, by our names, sorted."""
    found = set()
    for record in records():
        if record["dataset"] == data and record["teacher"] and record["student"]:
            entries = [zoo.by_paper(record[role], data) for role in ("teacher", "student")]
            found.add(tuple(entry.name for entry in entries if entry))
    assert all(len(pair) == 2 for pair in found)
    return sorted((teacher, student) for teacher, student in found)


def ablation(*, instance: bool, sample: bool, category: bool) -> float:
    """Top-1 of MCLD with some of its three terms (Table 7; CIFAR-100, ResNet32x4 to ResNet8x4), in percent."""
    flags = {"instance": instance, "sample": sample, "category": category}
    (record,) = (r for r in records(7) if all(r[name] == on for name, on in flags.items()))
    top1: float = record["top1"]
    return top1
