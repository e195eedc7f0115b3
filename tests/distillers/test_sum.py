"""Sum: its terms against those of its parts, their state and scratch, and parts that exclude each other."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distill.distillers import Distiller
from distill.distillers.dkd import DKD
from distill.distillers.kd import KD
from distill.distillers.lskd import LSKD
from distill.distillers.none import NoDistillation
from distill.distillers.sum import Sum
from distill.errors import UserError
from distill.types import Batch, Output, Shapes, Spec, Step
from methods import Borrows

SPEC = Spec(Shapes(7, pooled=3), Shapes(7, pooled=4), 7, num_samples=5, labels=torch.arange(5), batch_size=5)
LABELS = torch.tensor([0, 3, 3, 6, 1])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def kd(**changes):
    return KD(SPEC, **{"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9} | changes)


def dkd():
    return DKD(SPEC, temperature=4.0, alpha=1.0, beta=8.0, ce_weight=1.0, warmup_epochs=4.0)


def step_of():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    batch = Batch(torch.empty(0), LABELS, torch.arange(5))
    return Step(batch, Output(student.requires_grad_()), Output(3 * teacher), epoch=1, step=0)


def test_the_terms_are_those_of_the_parts_and_their_task_terms_one():
    step = step_of()
    terms = Sum(SPEC, terms={"a": kd(), "b": dkd()})(step)
    one, other = kd()(step), dkd()(step)
    assert list(terms) == ["ce", "a.kd", "b.tckd", "b.nckd"]
    torch.testing.assert_close(terms["ce"], 1.1 * other["ce"])
    assert (terms["a.kd"], terms["b.tckd"], terms["b.nckd"]) == (one["kd"], other["tckd"], other["nckd"])
    totals = sum(terms.values()), sum(one.values()) + sum(other.values())
    torch.testing.assert_close(*totals)
    torch.testing.assert_close(*(torch.autograd.grad(x, step.student.logits)[0] for x in totals))


def test_sums_and_wrappers_may_be_parts():
    step = step_of()
    inner = {"b": LSKD(SPEC, host=kd(), raw_terms=["ce"]), "c": NoDistillation(SPEC, ce_weight=0.3)}
    terms = Sum(SPEC, terms={"a": Sum(SPEC, terms=inner)})(step)
    assert list(terms) == ["ce", "a.b.kd"]
    torch.testing.assert_close(terms["ce"], 4 * kd()(step)["ce"])
    assert terms["a.b.kd"] == inner["b"](step)["kd"]


def test_parts_without_a_task_term_leave_none():
    class Silent(Distiller):
        def forward(self, step: Step) -> dict[str, Tensor]:
            return {"x": step.student.logits.sum()}

    assert list(Sum(SPEC, terms={"a": Silent()})(step_of())) == ["a.x"]


class Counts(Distiller):
    """Adds up what its own forward handed over."""

    needs = "features"
    needs_teacher = False

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(amount))
        self.register_buffer("total", torch.zeros(()))
        self.prepared = 0

    def prepare(self, student, teacher):
        self.prepared += 1

    def forward(self, step: Step) -> dict[str, Tensor]:
        step.scratch["amount"] = self.amount
        return {"x": self.amount * step.student.logits.sum()}

    def update(self, step: Step) -> None:
        self.total += step.scratch["amount"]
        assert len(step.scratch) == 1


def test_each_part_has_a_scratch_and_a_state_of_its_own():
    method, step = Sum(SPEC, terms={"a": Counts(1.0), "b": Counts(2.0)}), step_of()
    for _ in range(3):
        step = replace(step, scratch={})
        method(step)
        with torch.no_grad():
            method.update(step)
    assert [method.part(name).total.item() for name in "ab"] == [3, 6]
    state = ["parts.a.amount", "parts.a.total", "parts.b.amount", "parts.b.total"]
    assert list(method.state_dict()) == state
    assert all(p.requires_grad for p in method.parameters())
    method.prepare(None, None)
    assert [method.part(name).prepared for name in "ab"] == [1, 1]


class Looks(Distiller):
    """Observes in a way of its own."""

    views = 2

    def observe(self, student, teacher, batch):
        return Output(batch.images), Output(batch.images + 1)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {}


def test_what_one_part_asks_for_the_sum_asks_for():
    plain = Sum(SPEC, terms={"a": NoDistillation(SPEC, ce_weight=1.0)})
    assert (plain.needs, plain.views, plain.needs_teacher) == ("logits", 1, False)
    method = Sum(SPEC, terms={"a": Counts(1.0), "b": LSKD(SPEC, host=Looks(), raw_terms=["ce"])})
    assert (method.needs, method.views, method.needs_teacher) == ("features", 2, True)
    images = torch.randn(5, 7)
    student, teacher = method.observe(None, None, Batch(images, LABELS, LABELS))
    assert torch.equal(student.logits, images)
    assert torch.equal(teacher.logits, images + 1)


def test_parts_without_a_way_of_their_own_are_given_plain_answers():
    def network(images):
        return Output(images)

    images = torch.randn(5, 7)
    student, teacher = Sum(SPEC, terms={"a": NoDistillation(SPEC, ce_weight=1.0)}).observe(
        network, network, Batch(images, LABELS, LABELS)
    )
    assert student.logits is images
    assert teacher.logits.shape == (5, 0)


def test_what_a_part_deploys_is_deployed():
    class Head(nn.Module):
        classifier = nn.Linear(4, 7)

    student, teacher = nn.Identity(), Head()
    assert Sum(SPEC, terms={"a": kd(), "b": dkd()}).deploy(student, teacher) is student
    borrows = Borrows(SPEC, weight=1.0)
    deployed = Sum(SPEC, terms={"a": kd(), "b": borrows}).deploy(student, teacher)
    assert deployed.projector is borrows.projector


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({}, r"^a sum needs at least one method: add it with \+distiller@distiller\.terms\.kd=kd"),
        ({"a": Looks(), "b": kd(), "c": Borrows(SPEC, weight=1.0)}, r"^a and c cannot be trained together, for each"),
        (
            {"a": Looks(), "b": LSKD(SPEC, host=Looks(), raw_terms=["ce"])},
            r"a way of its own to observe the networks: keep one of them\.$",
        ),
    ],
)
def test_parts_that_exclude_each_other_are_refused(terms, expected):
    with pytest.raises(UserError, match=expected):
        Sum(SPEC, terms=terms)
