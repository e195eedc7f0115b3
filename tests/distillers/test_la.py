"""LA against its formula written as loops, and what must hold for any input."""

import pytest
import torch

from distill.distillers.kd import kd_loss
from distill.distillers.la import LabelAssignment, assigned, la_loss
from distill.types import Batch, Output, Shapes, Spec, Step

SPEC = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=6, labels=torch.arange(6), batch_size=6)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def swapped(row, y):
    """A row with its largest entry and the label's exchanged, entry by entry."""
    row = list(row)
    top = max(range(len(row)), key=lambda c: row[c])
    row[y], row[top] = row[top], row[y]
    return row


def la_by_loops(student, teacher, labels, temperature):
    total = torch.zeros((), dtype=student.dtype)
    for s, t, y in zip(student, teacher, labels.tolist(), strict=True):
        p, q = ([torch.exp(z / temperature) for z in row] for row in (swapped(t, y), s))
        for a, b in zip(p, q, strict=True):
            total = total + a / sum(p) * torch.log((a / sum(p)) / (b / sum(q)))
    return temperature**2 * total / len(student)


def make(rows=6, classes=7):
    student = torch.randn(rows, classes, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(rows, classes, dtype=torch.float64)
    labels = torch.randint(classes, (rows,))
    labels[0], labels[-1] = teacher[0].argmin(), teacher[-1].argmax()
    return student, teacher, labels


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_equal_the_formula(temperature, rows):
    student, teacher, labels = make(rows)
    fast = la_loss(student, teacher, labels, temperature=temperature)
    slow = la_by_loops(student, teacher, labels, temperature)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (fast, slow)), rtol=1e-9, atol=1e-12)


def test_the_label_holds_what_was_largest_and_the_rest_stays():
    teacher = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0], [1.0, 1.0, 0.0]])
    expected = torch.tensor([[2.0, 1.0, 3.0], [0.0, 5.0, 4.0], [1.0, 1.0, 0.0]])  # a tie changes nothing
    assert torch.equal(assigned(teacher, torch.tensor([2, 1, 1])), expected)


def test_is_kd_where_the_teacher_is_right_and_zero_where_the_student_says_what_is_assigned():
    student, teacher, labels = make()
    right = teacher.argmax(dim=1)
    expected = kd_loss(student, teacher, temperature=4.0)
    assert torch.equal(la_loss(student, teacher, right, temperature=4.0), expected)
    assert la_loss(assigned(teacher, labels) + 1, teacher, labels, temperature=4.0).item() == pytest.approx(
        0, abs=1e-12
    )
    assert la_loss(teacher, teacher, labels, temperature=4.0) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_stay_finite_under_large_logits_and_one_class_alone(dtype):
    teacher = (1e3 * torch.randn(7, 7)).to(dtype)
    for labels in (torch.full((7,), 3), teacher.argmin(dim=1), teacher.argmax(dim=1)):
        student = (-teacher).requires_grad_()
        loss = la_loss(student, teacher, labels, temperature=1.0)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert student.grad.isfinite().all()


def test_the_teacher_gets_no_gradient():
    student, teacher, labels = make()
    teacher.requires_grad_()
    la_loss(student, teacher, labels, temperature=4.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_method_weighs_its_terms_and_leaves_one_without_weight_out():
    student, teacher, labels = make()
    step = Step(Batch(torch.empty(0), labels, torch.arange(6)), Output(student), Output(teacher), epoch=1, step=0)
    plain = LabelAssignment(SPEC, temperature=4.0, ce_weight=0.0, kd_weight=0.5)(step)
    both = LabelAssignment(SPEC, temperature=4.0, ce_weight=0.1, kd_weight=0.5)(step)
    assert (list(plain), list(both)) == (["kd"], ["ce", "kd"])
    torch.testing.assert_close(plain["kd"], 0.5 * la_loss(student, teacher, labels, temperature=4.0))
    torch.testing.assert_close(both["ce"], 0.1 * torch.nn.functional.cross_entropy(student, labels))
