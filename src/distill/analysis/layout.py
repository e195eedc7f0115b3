"""The paper's Tables 1 to 11 as they are laid out: which number stands in which row and column."""

from dataclasses import dataclass, replace
from typing import Any

from distill import zoo
from distill.analysis import paper
from distill.analysis.paper import Metric
from distill.errors import UserError

TITLES = {
    1: "CIFAR-100, students of another family than their teacher",
    2: "CIFAR-100, students of their teacher's family",
    3: "LSKD+MLKD for 240 and 480 epochs, students of their teacher's family",
    4: "LSKD+MLKD for 240 and 480 epochs, students of another family",
    5: "ImageNet",
    6: "CIFAR-100, teachers of different strength",
    7: "MCLD's three terms, CIFAR-100",
    8: "Linear probes of frozen CIFAR-100 features",
    9: "Linear probes of frozen CIFAR-100 features",
    10: "CIFAR-100, one student and teachers of its family",
    11: "CIFAR-100, one student and teachers of other families",
}
ABLATION = 7
PROBES = {8: "resnet32x4 → resnet8x4", 9: "resnet110 → resnet20"}
TERMS = ("instance", "sample", "category")
GROUPS = {"features": "features", "logits": "logits", None: ""}
DATA = {"stl10": "STL-10", "tiny_imagenet": "Tiny-ImageNet", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
METRICS = {"top1": "top-1", "top5": "top-5"}


@dataclass(frozen=True)
class Slot:
    """The place of one number.

    Attributes:
        data: Name of the data set.
        teacher: Printed name, or ours where the pair is not the paper's; None for a student alone.
        student: Likewise; None for a teacher.
        method: Printed name, "teacher" or "student_baseline".
        metric: "top1" or "top5".
        probe: Whether a linear probe of frozen features is meant.
        terms: Of MCLD, where only some are on (Table 7).
        epochs: How long the paper trained; None where nothing but the data set's usual length can be meant.
        record: What the paper prints there; None for nothing.
        instead_of: The printed pair, where another stands in its place.
    """

    data: str
    teacher: str | None
    student: str | None
    method: str
    metric: Metric = "top1"
    probe: bool = False
    terms: frozenset[str] | None = None
    epochs: int | None = None
    record: dict[str, Any] | None = None
    instead_of: str | None = None

    @property
    def printed(self) -> float | None:
        """The paper's number in percent."""
        return None if self.record is None else self.record[self.metric]

    @property
    def reproduced(self) -> bool:
        """Whether the paper's authors ran it again themselves."""
        return bool(self.record and self.record.get("reproduced_by_paper"))

    @property
    def doubts(self) -> list[str]:
        """Why the paper's number should be read with care."""
        return [] if self.record is None else paper.doubts(self.record, self.metric)


@dataclass(frozen=True)
class Line:
    """One row of a table: its label, and a place in every column."""

    label: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Group:
    """Rows under one heading, which may be empty."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Layout:
    """One table: headings of its columns, and its rows in groups."""

    table: int
    columns: tuple[str, ...]
    groups: tuple[Group, ...]

    @property
    def slots(self) -> list[Slot]:
        """All places, row by row."""
        return [slot for group in self.groups for line in group.lines for slot in line.slots]


def layout(table: int, *, teacher: str | None = None, student: str | None = None) -> Layout:
    """A table as the paper lays it out, or some of its columns, or another pair in their place.

    Args:
        table: 1 to 11.
        teacher: Only columns with this teacher, by our name or the paper's.
        student: Only those with this student. Where both are given and the table has no such pair, the rows are
            laid out for that pair. A table of a single pair keeps its numbers beside it.

    Raises:
        UserError: If there is no such table, or it has no such column and only one network is given.
    """
    if table not in TITLES:
        raise UserError(f"The paper has no Table {table}: choose from 1 to {max(TITLES)}.")
    build = {5: _imagenet, 6: _teachers, 7: _ablation, 8: _probes, 9: _probes, 10: _teachers, 11: _teachers}
    whole = build.get(table, _pairs)(table)
    if teacher is None and student is None:
        return whole
    return _chosen(whole, teacher, student) or _elsewhere(whole, teacher, student)


def ours(data: str, printed: str | None) -> str:
    """What the catalogue calls a printed network; as printed where it has none, "none" for none."""
    if printed is None:
        return "none"
    found = zoo.by_paper(printed, data)
    return printed if found is None else found.name


def pair_in_words(data: str, teacher: str | None, student: str | None) -> str:
    """Both networks by our names."""
    return f"{ours(data, teacher)} → {ours(data, student)}"


def _record(table: int | None, **wanted: Any) -> dict[str, Any] | None:
    for record in paper.records(table):
        if all(record.get(key) == value for key, value in wanted.items()):
            return record
    return None


def _slot(
    table: int,
    data: str,
    teacher: str | None,
    student: str | None,
    method: str,
    *,
    metric: Metric = "top1",
    epochs: int | None = None,
) -> Slot:
    """With its number; a network alone that the table does not print is taken from the others."""
    if method == "teacher":
        student = None
    if method == "student_baseline":
        teacher = None
    wanted: dict[str, Any] = {"dataset": data, "teacher": teacher, "student": student, "method": method}
    if epochs:
        wanted["epochs"] = epochs
    record = _record(table, **wanted)
    if record is None and method == "teacher":
        record = _record(None, protocol=None, **wanted)
    elif record is None and method == "student_baseline":
        # a student alone may only be printed as another's teacher
        as_teacher = wanted | {"teacher": student, "student": None, "method": "teacher"}
        record = _record(None, protocol=None, **wanted) or _record(None, protocol=None, **as_teacher)
    length = epochs or (record or {}).get("epochs")
    return Slot(data, teacher, student, method, metric=metric, epochs=length, record=record)


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _pairs(table: int) -> Layout:
    """Tables 1 to 4: a column for each pair."""
    rows = [record for record in paper.records(table) if record["teacher"] and record["student"]]
    pairs = _unique((row["teacher"], row["student"]) for row in rows)
    data = "cifar100"
    alone = [
        Line(label, tuple(_slot(table, data, pair[0], pair[1], method) for pair in pairs))
        for label, method in (("teacher", "teacher"), ("student alone", "student_baseline"))
    ]
    groups = [Group("", tuple(alone))]
    for manner in _unique(row.get("manner") for row in rows):
        keys = _unique((row["method"], row["epochs"]) for row in rows if row.get("manner") == manner)
        several = len({epochs for _, epochs in keys}) > 1
        lines = [
            Line(
                f"{method}, {epochs} epochs" if several else method,
                tuple(_slot(table, data, pair[0], pair[1], method, epochs=epochs) for pair in pairs),
            )
            for method, epochs in keys
        ]
        groups.append(Group(GROUPS[manner], tuple(lines)))
    return Layout(table, tuple(pair_in_words(data, *pair) for pair in pairs), tuple(groups))


def _imagenet(table: int) -> Layout:
    """Table 5: two columns for each pair."""
    rows, data = paper.records(table), "imagenet"
    pairs = _unique((row["teacher"], row["student"]) for row in rows if row["teacher"] and row["student"])
    metrics: tuple[Metric, ...] = ("top1", "top5")
    columns = tuple(f"{pair_in_words(data, *pair)}, {METRICS[metric]}" for pair in pairs for metric in metrics)
    labels = {"student_baseline": "student alone"}
    lines = [
        Line(
            labels.get(method, method),
            tuple(_slot(table, data, pair[0], pair[1], method, metric=metric) for pair in pairs for metric in metrics),
        )
        for method in _unique(row["method"] for row in rows)
    ]
    return Layout(table, columns, (Group("", tuple(lines)),))


def _teachers(table: int) -> Layout:
    """Tables 6, 10 and 11: a column for each teacher, a group of rows for each student."""
    rows, data = paper.records(table), "cifar100"
    teachers = _unique(row["teacher"] for row in rows if row["teacher"])
    students = _unique(row["student"] for row in rows if row["student"])
    methods = _unique(row["method"] for row in rows if row["student"] and row["teacher"])
    groups = [Group("", (Line("teacher", tuple(_slot(table, data, name, None, "teacher") for name in teachers)),))]
    for student in students:
        alone = tuple(_slot(table, data, None, student, "student_baseline") for _ in teachers)
        lines = [Line("student alone", alone)]
        lines += [Line(m, tuple(_slot(table, data, name, student, m) for name in teachers)) for m in methods]
        groups.append(Group(f"student {ours(data, student)}", tuple(lines)))
    return Layout(table, tuple(f"teacher {ours(data, name)}" for name in teachers), tuple(groups))


def _ablation(table: int) -> Layout:
    """Table 7: a row for each subset of the three terms."""
    rows = paper.records(table)
    data, teacher, student = (rows[0][key] for key in ("dataset", "teacher", "student"))
    lines = []
    for row in rows:
        on = [term for term in TERMS if row[term]]
        method = row["method"] if on else "student_baseline"
        slot = Slot(data, teacher if on else None, student, method, terms=frozenset(on) if on else None, record=row)
        lines.append(Line(" + ".join(on) or "none: student alone", (slot,)))
    return Layout(table, (pair_in_words(data, teacher, student),), (Group("", tuple(lines)),))


def _probes(table: int) -> Layout:
    """Tables 8 and 9: a column for each data set that the features are probed on."""
    rows = paper.records(table)
    sets = _unique(row["dataset"] for row in rows)
    lines = []
    for method in _unique(row["method"] for row in rows):
        slots = []
        for data in sets:
            row = next(row for row in rows if row["dataset"] == data and row["method"] == method)
            teacher = None if method == "student_baseline" else row["teacher"]
            slots.append(Slot(data, teacher, row["student"], method, probe=True, record=row))
        lines.append(Line({"student_baseline": "student alone"}.get(method, method), tuple(slots)))
    return Layout(table, tuple(DATA[data] for data in sets), (Group("", tuple(lines)),))


def _chosen(whole: Layout, teacher: str | None, student: str | None) -> Layout | None:
    """The columns and groups with these networks; None where there are none."""

    def wanted(slot: Slot) -> bool:
        named = ((teacher, slot.teacher), (student, slot.student))
        # one network alone stands in the columns of its pairs
        return all(
            name is None or theirs is None or paper.same_network(name, theirs, slot.data) for name, theirs in named
        )

    groups = [
        replace(group, lines=tuple(line for line in group.lines if any(map(wanted, line.slots))))
        for group in whole.groups
    ]
    groups = [group for group in groups if group.lines]
    lines = [line for group in groups for line in group.lines]
    keep = [i for i in range(len(whole.columns)) if all(wanted(line.slots[i]) for line in lines)]
    pairs = [line for line in lines if line.slots[0].method not in ("teacher", "student_baseline")]
    if not keep or not pairs:
        return None
    return Layout(whole.table, tuple(whole.columns[i] for i in keep), _columns(tuple(groups), keep))


def _columns(groups: tuple[Group, ...], keep: list[int]) -> tuple[Group, ...]:
    return tuple(
        replace(group, lines=tuple(replace(line, slots=tuple(line.slots[i] for i in keep)) for line in group.lines))
        for group in groups
    )


def _elsewhere(whole: Layout, teacher: str | None, student: str | None) -> Layout:
    """The rows of a table for a pair that it does not have."""
    if teacher is None or student is None:
        missing = f"teacher {teacher}" if student is None else f"student {student}"
        raise UserError(
            f"Table {whole.table} has no {missing}: name both --teacher and --student to lay it out for another pair."
        )
    pairs = {(slot.teacher, slot.student) for slot in whole.slots if slot.teacher and slot.student}
    single = pair_in_words("", *pairs.pop()) if len(pairs) == 1 else None
    # columns that differ in more than the pair stay apart
    keep: dict[tuple[str, str], int] = {}
    for place, slot in enumerate(whole.groups[-1].lines[-1].slots):
        keep.setdefault((slot.data, slot.metric), place)
    groups, seen = [], set()
    for group in _columns(whole.groups, list(keep.values())):
        lines = []
        for line in group.lines:
            if line.label not in seen:
                seen.add(line.label)
                lines.append(replace(line, slots=tuple(_moved(slot, teacher, student, single) for slot in line.slots)))
        if lines:
            groups.append(Group(group.title if not group.title.startswith("student ") else "", tuple(lines)))
    pair = f"{teacher} → {student}"
    names = {"cifar100": pair, "imagenet": pair}
    columns = [names.get(data, f"{pair}, {DATA[data]}") for data, _ in keep]
    if whole.table == 5:
        columns = [f"{pair}, {METRICS[metric]}" for _, metric in keep]
    return Layout(whole.table, tuple(columns), tuple(groups))


def _moved(slot: Slot, teacher: str, student: str, single: str | None) -> Slot:
    """A place for another pair; its number stays where the table has a single pair."""
    moved = replace(
        slot,
        teacher=None if slot.method == "student_baseline" else teacher,
        student=None if slot.method == "teacher" else student,
    )
    if single is not None:
        return replace(moved, instead_of=single)
    if slot.method not in ("teacher", "student_baseline"):
        return replace(moved, record=None)
    networks = [
        record
        for record in paper.records()
        if "protocol" not in record
        and record["dataset"] == slot.data
        and record["method"] in ("teacher", "student_baseline")
        and paper.same_network(moved.teacher or moved.student, record["teacher"] or record["student"], slot.data)
    ]
    networks.sort(key=lambda record: record["method"] != slot.method)
    return replace(moved, record=networks[0] if networks else None)
