"""Every method takes real steps on every pair of the papers' tables."""

import copy
import json
from functools import cache
from importlib.resources import files

import pytest
import torch

import harness
from distill.build import build_distiller, build_network, channels_last, freeze, shapes
from distill.models.network import Network
from distill.types import Batch, Shapes, Spec, Step
from distill.zoo import by_name, by_paper

CLASSES, ROWS, SAMPLES, SIZE = 100, 4, 200, 32
TABLES = (1, 2, 6, 10, 11)
# stages of teacher and student: three and three, four and four, three and four, four and three
REPRESENTATIVE = (
    ("resnet56", "resnet20"),
    ("vgg13", "mobilenetv2"),
    ("wrn_40_2", "mobilenetv2"),
    ("vgg13", "wrn_16_2"),
    ("resnet32x4", "shufflenetv2"),
)


def pairs_of_the_tables() -> list[tuple[str, str]]:
    records = json.loads(files("distill.analysis").joinpath("paper_tables.json").read_text())["records"]
    names = {
        (record["teacher"], record["student"])
        for record in records
        if record["table"] in TABLES and record["teacher"] and record["student"]
    }
    found = {tuple(entry.name for entry in map(by_paper, pair) if entry) for pair in names}
    assert all(len(pair) == 2 for pair in found)
    return sorted(found)


PAIRS = pairs_of_the_tables()


@cache
def network(name: str, what: str) -> tuple[Network, Shapes]:
    entry = by_name(name)
    node = {"_target_": entry.target, **entry.arguments, "num_classes": CLASSES}
    built = build_network(node, what=what, num_classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    channels_last(freeze(built) if what == "teacher" else built)
    return built, shapes(built, what=what, num_classes=CLASSES, size=SIZE)


@cache
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for first in (0, ROWS):
        images, strong = torch.rand(2, ROWS, 3, SIZE, SIZE, generator=generator)
        index = torch.arange(first, first + ROWS)
        labels = torch.tensor([3, 3, 7, 90])  # two of one class: some terms compare these
        found.append(Batch(images, labels, index, strong=strong))
    return found


def take_two_steps(method: str, teacher_name: str, student_name: str) -> None:
    config = harness.configure(f"distiller={method}", f"teacher={teacher_name}", f"student={student_name}")
    teacher, of_teacher = network(teacher_name, "teacher")
    student, of_student = network(student_name, "student")
    student = copy.deepcopy(student)
    labels = torch.arange(SAMPLES) % CLASSES
    labels[: 2 * ROWS] = torch.cat([batch.labels for batch in batches()])
    spec = Spec(of_student, of_teacher, CLASSES, SAMPLES, labels, ROWS)
    distiller = build_distiller(config["distiller"], spec, seed=0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distiller.prepare(student, teacher)
    student.train()
    distiller.train()
    named = [(f"student.{name}", p) for name, p in student.named_parameters() if p.requires_grad]
    named += [(f"distiller.{name}", p) for name, p in distiller.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([parameter for _, parameter in named], lr=1e-3, momentum=0.9, weight_decay=0.0)
    for number, batch in enumerate(batches()):
        optimizer.zero_grad()
        student_answer, teacher_answer = distiller.observe(student, teacher, batch)
        step = Step(batch, student_answer, teacher_answer, epoch=1, step=number)
        terms = distiller(step)
        assert all(term.isfinite() for term in terms.values()), terms
        torch.stack(list(terms.values())).sum().backward()
        without = [name for name, parameter in named if parameter.grad is None or not parameter.grad.any()]
        assert without == []
        assert all(parameter.grad.isfinite().all() for _, parameter in named)
        optimizer.step()
        with torch.no_grad():
            distiller.update(step)
    assert [name for name, value in teacher.state_dict().items() if not torch.equal(value, before[name])] == []


@pytest.mark.parametrize("pair", REPRESENTATIVE, ids="-".join)
@pytest.mark.parametrize("method", harness.METHODS)
def test_a_pair_of_each_shape(method: str, pair: tuple[str, str]) -> None:
    take_two_steps(method, *pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in REPRESENTATIVE], ids="-".join)
@pytest.mark.parametrize("method", harness.METHODS)
def test_every_pair(method: str, pair: tuple[str, str]) -> None:
    take_two_steps(method, *pair)


def test_the_tables_name_these_pairs() -> None:
    assert len(PAIRS) == 26
    assert set(REPRESENTATIVE) <= set(PAIRS)
