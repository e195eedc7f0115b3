"""RLD against its formulas written as loops, and what must hold for any input."""

import pytest
import torch

from distill.distillers.dkd import dkd_loss
from distill.distillers.rld import RLD, mcd_loss, rld_loss, scd_loss
from distill.types import Batch, Output, Shapes, Spec, Step

NUMBERS = {"alpha": 1.5, "beta": 8.0, "temperature": 4.0, "confidence_temperature": 2.0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def softmax(row, temperature):
    weights = [torch.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def rld_by_loops(student, teacher, labels, *, alpha, beta, temperature, confidence_temperature):
    """Both divergences from plain probabilities, one class at a time."""
    total = torch.zeros((), dtype=student.dtype)
    for s, t, y in zip(student, teacher, labels.tolist(), strict=True):
        confidence = max(softmax(t, confidence_temperature))
        own = softmax(s, confidence_temperature)[y]
        moved = confidence * torch.log(confidence / own) + (1 - confidence) * torch.log((1 - confidence) / (1 - own))
        below = [c for c in range(len(t)) if t[c] < t[y]]
        among = 0
        for p, q in zip(*(softmax([row[c] for c in below], temperature) for row in (t, s)), strict=True):
            among = among + p * torch.log(p / q)
        total = total + alpha * confidence_temperature**2 * moved + beta * temperature**2 * among
    return total / len(student)


def make(rows=6, classes=7):
    student = torch.randn(rows, classes, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(rows, classes, dtype=torch.float64)
    labels = torch.randint(classes, (rows,))
    labels[0] = teacher[0].argmin()  # nothing is below it
    labels[-1] = teacher[-1].argmax()
    return student, teacher, labels


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(
    "numbers", [NUMBERS, NUMBERS | {"confidence_temperature": 1.0}, NUMBERS | {"alpha": 0.0}, NUMBERS | {"beta": 0.0}]
)
def test_value_and_gradient_equal_the_formula(rows, numbers):
    student, teacher, labels = make(rows)
    fast, slow = rld_loss(student, teacher, labels, **numbers), rld_by_loops(student, teacher, labels, **numbers)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (fast, slow)), rtol=1e-9, atol=1e-12)


def test_equals_dkd_where_the_teacher_is_right():
    student, teacher, _ = make()
    labels = teacher.argmax(dim=1)
    refined = rld_loss(student, teacher, labels, **NUMBERS | {"confidence_temperature": 4.0})
    torch.testing.assert_close(refined, dkd_loss(student, teacher, labels, alpha=1.5, beta=8.0, temperature=4.0))


def test_a_label_that_is_the_teachers_lowest_class_leaves_no_correlation_and_no_nan():
    student, teacher, _ = make()
    loss = mcd_loss(student, teacher, teacher.argmin(dim=1), temperature=4.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert (gradient == 0).all()


def test_classes_that_the_teacher_ranks_at_or_above_the_label_get_no_gradient_from_the_correlation():
    student, teacher, labels = torch.randn(1, 4).requires_grad_(), torch.tensor([[3.0, 1, 1, 0]]), torch.tensor([1])
    mcd_loss(student, teacher, labels, temperature=1.0).backward()
    assert (student.grad == 0).all()  # a tie is masked, and one class alone has nothing to match
    student.grad = None
    mcd_loss(student, teacher, torch.tensor([0]), temperature=1.0).backward()
    assert (student.grad != 0).tolist() == [[False, True, True, True]]


def test_confidence_is_the_teachers_whatever_class_holds_it():
    teacher = torch.tensor([[0.0, 4.0, 1.0]])
    right, wrong = torch.tensor([[4.0, 0.0, 1.0]]), teacher
    assert scd_loss(right, teacher, torch.tensor([0]), confidence_temperature=1.0) == pytest.approx(0, abs=1e-6)
    assert scd_loss(wrong, teacher, torch.tensor([0]), confidence_temperature=1.0) > 1


@pytest.mark.parametrize("scale", [1e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_stay_finite_under_large_logits(scale, dtype):
    teacher = (scale * torch.randn(7, 7)).to(dtype)
    for labels in (torch.arange(7), torch.full((7,), 3), teacher.argmin(dim=1), teacher.argmax(dim=1)):
        for rows in (-teacher, teacher.flip(1), torch.zeros_like(teacher)):
            student = rows.clone().requires_grad_()
            loss = rld_loss(student, teacher, labels, **NUMBERS)
            loss.backward()
            assert loss.dtype == torch.float32
            assert loss.isfinite()
            assert student.grad.isfinite().all()


def test_half_precision_logits_are_computed_in_float32():
    student, teacher = (20 * torch.randn(2, 5, 7)).bfloat16().unbind()
    labels = torch.tensor([0, 3, 3, 6, 1])
    loss = rld_loss(student, teacher, labels, **NUMBERS)
    assert torch.equal(loss, rld_loss(student.float(), teacher.float(), labels, **NUMBERS))


def test_the_teacher_gets_no_gradient():
    student, teacher, labels = make()
    teacher.requires_grad_()
    rld_loss(student, teacher, labels, **NUMBERS).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_method_weighs_its_terms_and_warms_up():
    spec = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=6, labels=torch.arange(6), batch_size=6)
    student, teacher, labels = make()
    batch = Batch(torch.empty(0), labels, torch.arange(6))
    method = RLD(spec, **NUMBERS, ce_weight=0.5, warmup_epochs=20.0)
    early, late = (method(Step(batch, Output(student), Output(teacher), epoch, 0)) for epoch in (5, 20))
    assert list(late) == ["ce", "scd", "mcd"]
    torch.testing.assert_close(early["ce"], late["ce"])
    torch.testing.assert_close(late["ce"], 0.5 * torch.nn.functional.cross_entropy(student, labels))
    torch.testing.assert_close(late["scd"] + late["mcd"], rld_loss(student, teacher, labels, **NUMBERS))
    for term in ("scd", "mcd"):
        torch.testing.assert_close(early[term], late[term] / 4)
