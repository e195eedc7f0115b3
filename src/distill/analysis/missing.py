"""What a table of the paper still lacks, as commands that would fill it.

A sweep skips runs that are finished, so that the table's own experiment trains what is missing and nothing else; the
commands after it train parts of that.
"""

from collections.abc import Sequence

from distill.analysis import paper
from distill.analysis.layout import TERMS, Slot, ours

SEEDS = (0, 1, 2)  # the paper averages three runs


def commands(
    table: int,
    wanted: Sequence[tuple[Slot, Sequence[int]]],
    *,
    epochs: int | None,
    teacher: str | None = None,
    student: str | None = None,
) -> list[str]:
    """Command lines: the table's experiment, and for its parts one per teacher and methods.

    Args:
        table: Which table.
        wanted: Places, with the seeds that each already has.
        epochs: Length of training in place of the paper's.
        teacher: The teacher that the table was narrowed to, or laid out for.
        student: Likewise.

    Returns:
        Nothing where nothing is missing.
    """
    parts = _parts(wanted, epochs)
    if not parts and not any(_lacking(slot, seeds) for slot, seeds in wanted):
        return []
    given = {"teacher": teacher, "student": student, "recipe.epochs": epochs}
    more = "".join(f" {key}={value}" for key, value in given.items() if value is not None)
    whole = f"python src/train.py -m experiment=table{table}{more}"
    if probes := [slot for slot, _ in wanted if slot.probe]:
        pair = next(slot for slot in probes if slot.teacher and slot.student)
        names = [ours("cifar100", name) for name in (pair.teacher, pair.student)]
        runs = [f"outputs/cifar100/none-{names[1]}", f"outputs/cifar100/{names[0]}-{names[1]}", names[0]]
        data = ",".join(dict.fromkeys(slot.data for slot in probes))
        return [whole, f"python src/probe.py -m data={data} networks=[{','.join(runs)}]"]
    return [whole, *parts] if len(parts) > 1 else [whole]


def _lacking(slot: Slot, seeds: Sequence[int]) -> list[str]:
    """Seeds that would make it as many as the paper has; a probed teacher has but one run to be probed."""
    wanted = 1 if slot.probe and slot.method == "teacher" else len(SEEDS)
    return [str(seed) for seed in SEEDS if seed not in seeds][: max(0, wanted - len(seeds))]


def _parts(wanted: Sequence[tuple[Slot, Sequence[int]]], epochs: int | None) -> list[str]:
    found: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for slot, seeds in wanted:
        lacking = _lacking(slot, seeds)
        if not lacking or slot.probe or slot.method == "teacher":
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
