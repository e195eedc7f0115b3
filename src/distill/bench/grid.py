"""Every method on every pair of the paper's tables: whether it takes real steps there, and what a step costs.

Networks start at random and batches are noise: what is seen is whether sizes, gradients and state fit, not what is
learnt.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from statistics import median
from typing import Any

import torch

from distill import zoo
from distill.analysis import paper
from distill.bench.settings import settle
from distill.build import Node, build_distiller, build_network, channels_last, freeze, shapes
from distill.models.network import Network
from distill.record import count
from distill.types import Batch, Spec, Step

CLASSES = 100
# px: ImageNet's networks halve a map five times, which leaves one of 2 x 2
SIZES = {"cifar100": 32, "imagenet": 64}
LOOKED_AT = 2  # steps

Pair = tuple[str, str]  # teacher and student, as in the catalogue


@dataclass(frozen=True)
class Cell:
    """What one method did on one pair.

    Attributes:
        method: As the distiller group has it.
        teacher: As in the catalogue.
        student: Likewise.
        trouble: What was wrong, in words; "" if it passes.
        milliseconds: Of each step.
        extra: Parameters that the method trains beside the student's.
    """

    method: str
    teacher: str
    student: str
    trouble: str
    milliseconds: tuple[float, ...]
    extra: int


def pairs() -> list[Pair]:
    """Every pair of the paper's distillation tables: those on CIFAR-100, then those on ImageNet."""
    return [pair for data in SIZES for pair in paper.pairs(data)]


def size_of(pair: Pair) -> int:
    """Of the images that a pair looks at here, in px."""
    return SIZES["imagenet" if all(zoo.by_name(name).size == zoo.LARGE for name in pair) else "cifar100"]


@lru_cache(maxsize=6)
def network(name: str, what: str) -> Network:
    """A network of the catalogue with random weights, settled and frozen if it is the "teacher"; not to be changed."""
    entry = zoo.by_name(name)
    node = {"_target_": entry.target, **entry.arguments, "num_classes": CLASSES}
    built = build_network(node, what=what, num_classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    channels_last(built)
    if what == "teacher":
        settle(built, batches(64, size_of((name, name)))[0].images)
        freeze(built)
    return built


@cache
def batches(rows: int, size: int) -> tuple[Batch, ...]:
    """Two batches of noise in which every class comes twice, for terms that compare samples of one class."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(2):
        images, strong = torch.rand(2, rows, 3, size, size, generator=generator)
        index = torch.arange(number * rows, (number + 1) * rows)
        found.append(Batch(images, 7 * (index // 2) % CLASSES, index, strong=strong))
    return tuple(found)


def steps(method: str, node: Node, pair: Pair, *, rows: int, samples: int, count_of: int) -> Cell:
    """Take steps with a method, called so, on a pair of the catalogue; the other arguments are those of `take`."""
    teacher, student = network(pair[0], "teacher"), copy.deepcopy(network(pair[1], "student"))
    size = size_of(pair)
    trouble, times, extra = take(node, teacher, student, size=size, rows=rows, samples=samples, count_of=count_of)
    return Cell(method, *pair, trouble, times, extra)


def take(
    node: Node, teacher: Network, student: Network, *, size: int, rows: int, samples: int, count_of: int
) -> tuple[str, tuple[float, ...], int]:
    """Take steps by SGD on two batches in turn, in float32 on the CPU, and look closely at the first two.

    Args:
        node: The method's configuration.
        teacher: Of `CLASSES` classes; frozen.
        student: Of as many; it is trained.
        size: Of the images, in px.
        rows: Of a batch.
        samples: Of the training set that the method is told of; at least those of two batches.
        count_of: How many steps; at least two.

    Returns:
        `trouble`, `milliseconds` and `extra` of a `Cell`.
    """
    given = batches(rows, size)
    labels = torch.arange(samples) % CLASSES
    labels[: 2 * rows] = torch.cat([batch.labels for batch in given])
    of_student = shapes(student, what="student", num_classes=CLASSES, size=size)
    of_teacher = shapes(teacher, what="teacher", num_classes=CLASSES, size=size)
    spec = Spec(of_student, of_teacher, CLASSES, samples, labels, rows)
    distiller = build_distiller(node, spec, seed=0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distiller.prepare(student, teacher)
    student.train()
    distiller.train()
    named = [(f"student.{name}", p) for name, p in student.named_parameters() if p.requires_grad]
    named += [(f"distiller.{name}", p) for name, p in distiller.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([parameter for _, parameter in named], lr=1e-3, momentum=0.9, weight_decay=0.0)
    troubles: list[str] = []
    times = []
    for number in range(count_of):
        begin = time.perf_counter()
        optimizer.zero_grad()
        batch = given[number % len(given)]
        step = Step(batch, *distiller.observe(student, teacher, batch), epoch=1, step=number)
        terms = distiller(step)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        looked = time.perf_counter()
        if number < LOOKED_AT:
            troubles += [f"{name} is {term.item()}" for name, term in terms.items() if not term.isfinite()]
            troubles += [f"{name} has no gradient" for name, p in named if p.grad is None or not p.grad.any()]
            troubles += [f"the gradient of {name} is not finite" for name, p in named if not _finite(p.grad)]
        seen = time.perf_counter()
        optimizer.step()
        with torch.no_grad():
            distiller.update(step)
        times.append(1e3 * (time.perf_counter() - seen + looked - begin))
    changed = [name for name, value in teacher.state_dict().items() if not torch.equal(value, before[name])]
    troubles += [f"the teacher's {name} has changed" for name in changed]
    return "; ".join(troubles), tuple(times), count(distiller, trainable=True)


def _finite(gradient: torch.Tensor | None) -> bool:
    return gradient is None or bool(gradient.isfinite().all())


# ---------------------------------------------------------------------- what is written


def as_plain(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """For a JSON file."""
    return [asdict(cell) for cell in cells]


def from_plain(content: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """From one."""
    return [Cell(**{**cell, "milliseconds": tuple(cell["milliseconds"])}) for cell in content]


def markdown(cells: Sequence[Cell]) -> str:
    """What passes, milliseconds per step (the median without the first) and extra parameters, methods by pairs."""
    passed = [cell for cell in cells if not cell.trouble]
    shown = list(dict.fromkeys((cell.teacher, cell.student) for cell in cells))
    text = [f"{len(passed)} of {len(cells)} pass."]
    text += [f"- {c.method}, {c.teacher} → {c.student}: {c.trouble}" for c in cells if c.trouble]
    times = {(c.method, c.teacher, c.student): f"{median(c.milliseconds[1:]):.0f}" for c in passed}
    extras = {(c.method, c.teacher, c.student): f"{c.extra:,}" for c in passed if c.extra}
    text += ["", "Milliseconds per step (✗: does not pass)", "", _table(cells, shown, times)]
    text += ["", "Parameters that are trained beside the student's", "", _table(cells, shown, extras)]
    return "\n".join(text) + "\n"


def _table(cells: Sequence[Cell], shown: list[Pair], values: Mapping[tuple[str, str, str], str]) -> str:
    failed = {(c.method, c.teacher, c.student): "✗" for c in cells if c.trouble}
    methods = sorted({method for method, *_ in values} | {method for method, *_ in failed})
    head = ["method", *(f"{_short(teacher)} → {_short(student)}" for teacher, student in shown)]
    rows = [head, ["---", *["--:"] * len(shown)]]
    for method in methods:
        names = [(method, *pair) for pair in shown]
        rows.append([method, *(failed.get(name) or values.get(name, "–") for name in names)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _short(name: str) -> str:
    entry = zoo.by_name(name)
    shortest = min(entry.papers, key=len)
    return f"{shortest} (ImageNet)" if entry.size == zoo.LARGE else shortest
