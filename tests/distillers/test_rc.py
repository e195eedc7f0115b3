"""RC against its formula written as loops, and what must hold for any input."""

import pytest
import torch

from distill.distillers.kd import kd_loss
from distill.distillers.rc import RefinedConfidence, raised, rc_loss
from distill.types import Batch, Output, Shapes, Spec, Step

SPEC = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=6, labels=torch.arange(6), batch_size=6)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rc_by_loops(student, labels, temperature):
    """The divergence from plain numbers for the target and tensors for the student, one class at a time."""
    total = torch.zeros((), dtype=student.dtype)
    for row, y in zip(student, labels.tolist(), strict=True):
        target = row.tolist()
        target[y] += max(target)
        target = torch.exp(torch.tensor(target, dtype=student.dtype) / temperature)
        own = [torch.exp(z / temperature) for z in row]
        for p, q in zip(target / target.sum(), own, strict=True):
            total = total + p * torch.log(p / (q / sum(own)))
    return temperature**2 * total / len(student)


def make(rows=6, classes=7):
    student = torch.randn(rows, classes, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(classes, (rows,))
    labels[-1] = student[-1].argmax()
    return student, labels


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_equal_the_formula(temperature, rows):
    student, labels = make(rows)
    fast, slow = rc_loss(student, labels, temperature=temperature), rc_by_loops(student, labels, temperature)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (fast, slow)), rtol=1e-9, atol=1e-12)


def test_only_the_label_is_raised_by_the_largest_logit_and_the_target_has_no_graph():
    student = torch.tensor([[3.0, 1.0, 2.0], [-1.0, 4.0, 0.0]], requires_grad=True)
    target = raised(student, torch.tensor([2, 1]))
    assert torch.equal(target, torch.tensor([[3.0, 1.0, 5.0], [-1.0, 8.0, 0.0]]))
    assert not target.requires_grad
    assert torch.equal(student.detach()[0], torch.tensor([3.0, 1.0, 2.0]))


def test_is_zero_exactly_where_the_largest_logit_is_zero_and_otherwise_pulls_to_the_label():
    student, labels = make()
    flat = (student - student.amax(dim=1, keepdim=True)).detach().requires_grad_()
    assert rc_loss(flat, labels, temperature=4.0) == 0
    rc_loss(student, labels, temperature=4.0).backward()
    assert (student.amax(dim=1) > 0).all()
    assert (student.grad.gather(1, labels[:, None]) < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_stay_finite_under_large_logits_and_one_class_alone(dtype):
    logits = (1e3 * torch.randn(7, 7)).to(dtype)
    for labels in (torch.full((7,), 3), logits.argmin(dim=1), logits.argmax(dim=1)):
        for scale in (1, -1, 0):
            student = (scale * logits).requires_grad_()
            loss = rc_loss(student, labels, temperature=1.0)
            loss.backward()
            assert loss.dtype == torch.float32
            assert loss.isfinite()
            assert student.grad.isfinite().all()


def test_the_method_weighs_its_terms():
    student, labels = make()
    teacher = (3 * torch.randn(6, 7, dtype=torch.float64)).requires_grad_()
    step = Step(Batch(torch.empty(0), labels, torch.arange(6)), Output(student), Output(teacher), epoch=1, step=0)
    terms = RefinedConfidence(SPEC, temperature=4.0, ce_weight=0.3, kd_weight=0.5, rc_weight=0.1)(step)
    assert list(terms) == ["ce", "kd", "rc"]
    torch.testing.assert_close(terms["ce"], 0.3 * torch.nn.functional.cross_entropy(student, labels))
    torch.testing.assert_close(terms["kd"], 0.5 * kd_loss(student, teacher, temperature=4.0))
    torch.testing.assert_close(terms["rc"], 0.1 * rc_loss(student, labels, temperature=4.0))
    sum(terms.values()).backward()
    assert teacher.grad is None
