"""KD against its formula written as loops, what must hold for any input, and training on the labels alone."""

import pytest
import torch

from distill.distillers.kd import KD, kd_loss
from distill.distillers.none import NoDistillation
from distill.types import Batch, Output, Shapes, Spec, Step

SPEC = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=5, labels=torch.arange(5), batch_size=5)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def kd_by_loops(student, teacher, temperature):
    """The definition, one probability at a time."""
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher, strict=True):
        ps, pt = ([torch.exp(z / temperature) for z in row] for row in (s, t))
        ps, pt = ([p / sum(row) for p in row] for row in (ps, pt))
        for p, q in zip(pt, ps, strict=True):
            total = total + p * torch.log(p / q)
    return temperature**2 * total / len(student)


def step_of(student, teacher, labels, epoch=1):
    return Step(Batch(torch.empty(0), labels, torch.arange(len(labels))), Output(student), Output(teacher), epoch, 0)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_equal_the_formula(temperature, rows):
    student = torch.randn(rows, 7, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(rows, 7, dtype=torch.float64)
    fast, slow = kd_loss(student, teacher, temperature=temperature), kd_by_loops(student, teacher, temperature)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (fast, slow)), rtol=1e-10, atol=1e-12)


def test_is_zero_exactly_where_the_rows_differ_by_a_constant():
    teacher = torch.randn(5, 7, dtype=torch.float64)
    assert kd_loss(teacher + torch.arange(5.0)[:, None], teacher, temperature=4.0).item() == pytest.approx(0, abs=1e-12)
    assert kd_loss(teacher.roll(1, dims=1), teacher, temperature=4.0) > 1e-2


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_value_and_gradient_stay_finite_where_probabilities_underflow(scale):
    teacher = torch.eye(7) * scale
    student = teacher.flip(1).requires_grad_()
    loss = kd_loss(student, teacher, temperature=1.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_the_teacher_gets_no_gradient():
    student, teacher = torch.randn(2, 3, 7).unbind()
    student.requires_grad_()
    teacher.requires_grad_()
    kd_loss(student, teacher, temperature=2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_half_precision_logits_are_computed_in_float32():
    student, teacher = (20 * torch.randn(2, 3, 7)).bfloat16().unbind()
    loss = kd_loss(student, teacher, temperature=2.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, kd_loss(student.float(), teacher.float(), temperature=2.0))


def test_the_method_weighs_its_terms():
    student, teacher = torch.randn(2, 5, 7).unbind()
    labels = torch.tensor([0, 3, 3, 6, 1])
    terms = KD(SPEC, temperature=4.0, ce_weight=0.1, kd_weight=0.9)(step_of(student, teacher, labels))
    task = -sum(row.softmax(0)[y].log() for row, y in zip(student, labels, strict=True)) / 5
    assert list(terms) == ["ce", "kd"]
    torch.testing.assert_close(terms["ce"], 0.1 * task)
    torch.testing.assert_close(terms["kd"], 0.9 * kd_loss(student, teacher, temperature=4.0))


def test_no_distillation_is_the_weighted_task_term_and_needs_no_teacher():
    student, labels = torch.randn(5, 7), torch.tensor([0, 3, 3, 6, 1])
    terms = NoDistillation(SPEC, ce_weight=0.5)(step_of(student, student.new_empty(5, 0), labels))
    task = -sum(row.softmax(0)[y].log() for row, y in zip(student, labels, strict=True)) / 5
    assert list(terms) == ["ce"]
    torch.testing.assert_close(terms["ce"], 0.5 * task)
    assert not NoDistillation.needs_teacher
    assert KD.needs_teacher
