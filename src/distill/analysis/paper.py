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
def _records() -> list[dict[str, Any]]:
    content = json.loads(files("distill.analysis").joinpath("paper_tables.json").read_text())
    records: list[dict[str, Any]] = content["records"]
    return records


def _same_network(ours: str | None, theirs: str | None) -> bool:
    # a printed name may mean different networks on different data, so names are compared from our side
    return ours == theirs or any(theirs in entry.papers for entry in zoo.CATALOGUE if entry.name == ours)


def _same_method(ours: str, theirs: str) -> bool:
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
    for record in _records():
        if record["dataset"] != data or ("protocol" in record) != probe or not _same_method(method, record["method"]):
            continue
        named = {"teacher": teacher, "student": student}
        if method in ("none", "teacher"):
            del named["teacher" if method == "none" else "student"]  # one network alone
        if any(record[role] is not None and not _same_network(name, record[role]) for role, name in named.items()):
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


def ablation(*, instance: bool, sample: bool, category: bool) -> float:
    """Top-1 of MCLD with some of its three terms (Table 7; CIFAR-100, ResNet32x4 to ResNet8x4), in percent."""
    flags = {"instance": instance, "sample": sample, "category": category}
    (record,) = (r for r in _records() if r["table"] == 7 and all(r[name] == on for name, on in flags.items()))
    top1: float = record["top1"]
    return top1
