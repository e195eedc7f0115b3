"""CTKD: its curriculum, the temperature's gradient by hand, and what must hold for any input."""

import math

import pytest
import torch

from distill.distillers.ctkd import CTKD, reversal_strength, reverse_gradient
from distill.distillers.kd import kd_loss
from distill.types import Batch, Output, Shapes, Spec, Step

SPEC = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=5, labels=torch.arange(5), batch_size=5)
NUMBERS = {
    **{"lowest_temperature": 1.0, "temperature_range": 20.0, "initial_theta": 1.0, "curriculum_epochs": 10.0},
    **{"ce_weight": 0.1, "kd_weight": 0.9},
}
LABELS = torch.tensor([0, 3, 3, 6, 1])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(**changes):
    return CTKD(SPEC, **NUMBERS | changes).double()


def step_of(student, teacher, *, epoch=1, labels=LABELS):
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)))
    return Step(batch, Output(student), Output(teacher), epoch, 0)


def logits(scale=4.0):
    student, teacher = (scale * torch.randn(2, 5, 7, dtype=torch.float64)).unbind()
    return student.requires_grad_(), teacher


def divergence_and_its_slope(student, teacher, temperature):
    """T² KL, mean over the rows, and its derivative in T: by the product and the quotient rule, class by class.

    With u = z / T, log p = u - log sum exp u has d log p / dT = -(u - E_p u) / T.
    """
    total, slope = 0.0, 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        us, ut = ([z / temperature for z in row] for row in (s, t))
        log_q, log_p = ([u - math.log(sum(map(math.exp, row))) for u in row] for row in (us, ut))
        q, p = ([math.exp(x) for x in row] for row in (log_q, log_p))
        mean_s, mean_t = sum(a * u for a, u in zip(q, us, strict=True)), sum(a * u for a, u in zip(p, ut, strict=True))
        for k in range(len(s)):
            d_log_q, d_log_p = -(us[k] - mean_s) / temperature, -(ut[k] - mean_t) / temperature
            difference = log_p[k] - log_q[k]
            total += p[k] * difference
            slope += p[k] * d_log_p * difference + p[k] * (d_log_p - d_log_q)
    rows = len(student)
    return temperature**2 * total / rows, 2 * temperature * total / rows + temperature**2 * slope / rows


@pytest.mark.parametrize(
    ("epoch", "strength"), [(1, 0.02447174185242318), (2, 0.09549150281252627), (5, 0.5), (9, 0.9755282581475768)]
)
def test_the_curriculum_is_that_of_the_published_logs(epoch, strength):
    """`decay_value` in the logs of zhengli97/CTKD and of what is built on it, less the sign."""
    assert reversal_strength(epoch, 10.0) == pytest.approx(strength, rel=1e-12)


def test_the_curriculum_ends_at_one_and_shrinks_with_the_recipe():
    assert [reversal_strength(epoch, 10.0) for epoch in (10, 11, 240)] == [1.0, 1.0, 1.0]
    assert reversal_strength(1, 2.0) == pytest.approx(0.5)
    assert reversal_strength(1, 0.5) == reversal_strength(1, 0.0) == 1.0


@pytest.mark.parametrize("epoch", [1, 5, 30])
@pytest.mark.parametrize("theta", [-2.0, 1.0])
def test_value_and_both_gradients_equal_the_formulas(epoch, theta):
    method, (student, teacher) = make(initial_theta=theta), logits()
    terms = method(step_of(student, teacher, epoch=epoch))
    share = 1 / (1 + math.exp(-theta))
    temperature = 1 + 20 * share
    value, slope = divergence_and_its_slope(student, teacher, temperature)
    assert terms["kd"].item() == pytest.approx(0.9 * value, rel=1e-9)
    terms["kd"].backward()
    strength = (1 - math.cos(math.pi * min(epoch / 10, 1))) / 2
    expected = -strength * 0.9 * slope * 20 * share * (1 - share)
    assert method.theta.grad.item() == pytest.approx(expected, rel=1e-9)
    fixed = 0.9 * kd_loss(student, teacher, temperature=temperature)
    torch.testing.assert_close(student.grad, torch.autograd.grad(fixed, student)[0])


def test_the_temperature_ascends_what_the_student_descends():
    """Down the reversed gradient, the divergence grows."""
    method, (student, teacher) = make(), logits()
    before = method(step_of(student, teacher, epoch=10))["kd"]
    before.backward()
    with torch.no_grad():
        method.theta -= 0.1 * method.theta.grad.sign()
    assert method(step_of(student, teacher, epoch=10))["kd"] > before


def test_the_terms_and_the_first_temperature():
    method, (student, teacher) = make(), logits()
    terms = method(step_of(student, teacher))
    task = -sum(row.softmax(0)[y].log() for row, y in zip(student, LABELS, strict=True)) / 5
    assert list(terms) == ["ce", "kd"]
    torch.testing.assert_close(terms["ce"], 0.1 * task)
    assert method.temperature(1).item() == pytest.approx(15.62, abs=0.005)
    assert [name for name, _ in method.named_parameters()] == ["theta"]


@pytest.mark.parametrize("theta", [-100.0, 100.0])
def test_the_temperature_keeps_to_its_range(theta):
    assert 1.0 <= make(initial_theta=theta).temperature(1).item() <= 21.0


@pytest.mark.parametrize("theta", [-100.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_one_class_only_and_one_row_stay_finite(theta, dtype):
    method = CTKD(SPEC, **NUMBERS | {"initial_theta": theta})
    teacher = (torch.eye(7) * 1e4).to(dtype)
    for rows in (1, 5):
        student = teacher.flip(1)[:rows].clone().requires_grad_()
        terms = method(step_of(student, teacher[:rows], labels=torch.full((rows,), 3)))
        method.zero_grad()
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        assert student.grad.isfinite().all()
        assert method.theta.grad.isfinite()


def test_equal_logits_teach_nothing_and_the_teacher_gets_no_gradient():
    method, (student, teacher) = make(), logits()
    teacher.requires_grad_()
    assert method(step_of(teacher + 1, teacher))["kd"].item() == pytest.approx(0, abs=1e-12)
    sum(method(step_of(student, teacher)).values()).backward()
    assert teacher.grad is None


def test_it_reports_its_temperature_and_the_strength_of_the_reversal():
    found = make().report(5)
    assert list(found) == ["temperature", "reversal"]
    assert float(found["temperature"]) == pytest.approx(15.62, abs=0.005)
    assert found["reversal"] == pytest.approx(0.5)
    assert not found["temperature"].requires_grad


def test_reversal_changes_no_value():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    y = reverse_gradient(x, strength=0.25)
    assert torch.equal(x, y)
    (y * torch.arange(3)).sum().backward()
    torch.testing.assert_close(x.grad, -0.25 * torch.arange(3, dtype=torch.float64))
