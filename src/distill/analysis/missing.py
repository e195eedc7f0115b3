"""What a table of the paper still lacks, as commands that would fill it."""

from collections.abc import Sequence

from distill.analysis import paper
from distill.analysis.layout import TERMS, Slot, ours

SEEDS = (0, 1, 2)  # the paper averages three runs


def commands(wanted: Sequence[tuple[Slot, Sequence[int]]], *, epochs: int | None) -> list[str]:
    """Command lines for `python`, of which each trains several methods on one pair.

    Args:
        wanted: Places, with the seeds that each already has.
        epochs: Length of training in place of the paper's.
    """
    found: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for slot, seeds in wanted:
        lacking = [str(seed) for seed in SEEDS if seed not in seeds][: max(0, len(SEEDS) - len(seeds))]
        if not lacking or (slot.method == "teacher" and not slot.probe):
            continue
        method, more = _method(slot)
        if length := epochs or (slot.epochs if slot.epochs != paper.EPOCHS.get(slot.data) else None):
            more.append(f"recipe.epochs={length}")
        more.append(f"seed={','.join(lacking)}")
        key = (ours(slot.data, slot.teacher), ours(slot.data, slot.student), tuple(more))
        if method not in found.setdefault(key, []):
            found[key].append(method)
    # pairs that lack the same are the product of a teacher and several students
    students: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (teacher, student, rest), names in found.items():
        students.setdefault((teacher, ",".join(names), rest), []).append(student)
    data = "data=imagenet " if any(slot.data == "imagenet" for slot, _ in wanted) else ""
    return [
        f"python src/train.py -m {data}teacher={teacher} student={','.join(several)} distiller={names} {' '.join(rest)}"
        for (teacher, names, rest), several in students.items()
    ]


def _method(slot: Slot) -> tuple[str, list[str]]:
    """The method by our name, and what else its command line needs."""
    name = paper.METHODS[slot.method]
    if slot.terms is not None:
        off = [f"distiller.{term}_weight=0" for term in TERMS if term not in slot.terms]
        return "mcld", ["distiller.ce_weight=0", *off]
    if name.startswith("dot+"):
        return name.removeprefix("dot+"), ["optimizer=dot"]
    return name.replace("+", "_"), []
