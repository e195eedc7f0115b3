"""DKD against its formulas written as loops, its identity with KD, and what must hold for any input."""

import pytest
import torch

from distill.distillers.dkd import DKD, dkd_loss, masked_kl, nckd_loss, ramp, tckd_loss
from distill.distillers.kd import kd_loss
from distill.types import Batch, Output, Shapes, Spec, Step

NUMBERS = {"alpha": 1.5, "beta": 6.0, "temperature": 4.0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def dkd_by_loops(student, teacher, labels, *, alpha, beta, temperature):
    """Both divergences from plain probabilities, one class at a time."""
    total = torch.zeros((), dtype=student.dtype)
    for s, t, y in zip(student, teacher, labels.tolist(), strict=True):
        ps, pt = ([torch.exp(z / temperature) for z in row] for row in (s, t))
        ps, pt = ([p / sum(row) for p in row] for row in (ps, pt))
        target = pt[y] * torch.log(pt[y] / ps[y]) + (1 - pt[y]) * torch.log((1 - pt[y]) / (1 - ps[y]))
        others = [c for c in range(len(ps)) if c != y]
        among = 0
        for c in others:
            p, q = pt[c] / sum(pt[k] for k in others), ps[c] / sum(ps[k] for k in others)
            among = among + p * torch.log(p / q)
        total = total + alpha * target + beta * among
    return temperature**2 * total / len(student)


def make(rows=5, classes=7):
    student = torch.randn(rows, classes, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(rows, classes, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (rows,))


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize(
    "numbers", [NUMBERS, NUMBERS | {"alpha": 0.0, "temperature": 1.0}, NUMBERS | {"beta": 0.0}], ids=str
)
def test_value_and_gradient_equal_the_formula(rows, classes, numbers):
    student, teacher, labels = make(rows, classes)
    fast, slow = dkd_loss(student, teacher, labels, **numbers), dkd_by_loops(student, teacher, labels, **numbers)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (fast, slow)), rtol=1e-9, atol=1e-12)


def test_kd_is_the_target_part_plus_the_rest_weighed_by_the_teachers_doubt():
    student, teacher, labels = make(rows=1)
    doubt = 1 - (teacher / 4).softmax(1)[0, labels[0]]
    parts = [part(student, teacher, labels, temperature=4.0) for part in (tckd_loss, nckd_loss)]
    torch.testing.assert_close(kd_loss(student, teacher, temperature=4.0), parts[0] + doubt * parts[1])


def test_each_part_is_blind_to_what_the_other_reads():
    _, teacher, labels = make()
    target = torch.nn.functional.one_hot(labels, 7)
    raised = teacher + 2 * target
    assert nckd_loss(raised, teacher, labels, temperature=4.0).item() == pytest.approx(0, abs=1e-12)
    assert tckd_loss(raised, teacher, labels, temperature=4.0) > 1e-2
    order = torch.stack([torch.tensor([c for c in range(7) if c != y]) for y in labels])
    permuted = teacher.scatter(1, order, teacher.gather(1, order.roll(1, dims=1)))
    assert tckd_loss(permuted, teacher, labels, temperature=4.0).item() == pytest.approx(0, abs=1e-12)
    assert nckd_loss(permuted, teacher, labels, temperature=4.0) > 1e-2


@pytest.mark.parametrize("scale", [1e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_stay_finite_under_large_logits(scale, dtype):
    labels = torch.arange(7)
    teacher = (torch.eye(7) * scale).to(dtype)
    for rows in (teacher.flip(1), (scale * torch.randn(7, 7)).to(dtype), -teacher):
        student = rows.clone().requires_grad_()
        loss = dkd_loss(student, teacher, labels, **NUMBERS)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert student.grad.isfinite().all()


def test_a_target_below_the_smallest_float_still_pulls():
    teacher, student = torch.tensor([[200.0, 0, 0]]), torch.tensor([[-200.0, 0, 0]], requires_grad=True)
    tckd_loss(student, teacher, torch.tensor([0]), temperature=1.0).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-1.0, 0.5, 0.5]]))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_masked_classes_take_no_part_and_a_row_without_classes_gives_zero():
    student, teacher, _ = make(rows=3)
    masked = torch.zeros(3, 7, dtype=torch.bool)
    masked[0, 2:4] = True
    masked[1] = True
    kept = [c for c in range(7) if c not in (2, 3)]
    loss = masked_kl(student, teacher, masked, temperature=2.0)
    expected = kd_loss(student[:1, kept], teacher[:1, kept], temperature=2.0)
    expected = (expected + kd_loss(student[2:], teacher[2:], temperature=2.0)) / 3
    torch.testing.assert_close(loss, expected)
    with torch.autograd.detect_anomaly(check_nan=True):  # no NaN on the way either
        loss = masked_kl(student, teacher, masked, temperature=2.0)
        (gradient,) = torch.autograd.grad(loss, student)
    assert (gradient[masked] == 0).all()
    assert (gradient[~masked] != 0).all()


def test_one_class_only_and_equal_logits_give_zero_and_the_teacher_gets_no_gradient():
    student, teacher, _ = make()
    labels = torch.full((5,), 3)
    assert dkd_loss(teacher + 1, teacher, labels, **NUMBERS).item() == pytest.approx(0, abs=1e-12)
    teacher.requires_grad_()
    dkd_loss(student, teacher, labels, **NUMBERS).backward()
    assert student.grad.isfinite().all()
    assert teacher.grad is None


def test_half_precision_logits_are_computed_in_float32():
    student, teacher = (20 * torch.randn(2, 5, 7)).bfloat16().unbind()
    labels = torch.tensor([0, 3, 3, 6, 1])
    loss = dkd_loss(student, teacher, labels, **NUMBERS)
    assert torch.equal(loss, dkd_loss(student.float(), teacher.float(), labels, **NUMBERS))


def test_the_ramp_is_linear_from_the_first_epoch_on_and_then_one():
    assert [ramp(e, 4.0) for e in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert ramp(1, 2.5) == pytest.approx(0.4)
    assert ramp(1, 0.0) == 1.0


def test_the_method_weighs_its_terms_and_warms_up():
    spec = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=5, labels=torch.arange(5), batch_size=5)
    student, teacher, labels = make()
    batch = Batch(torch.empty(0), labels, torch.arange(5))
    method = DKD(spec, **NUMBERS, ce_weight=0.5, warmup_epochs=20.0)
    early, late = (method(Step(batch, Output(student), Output(teacher), epoch, 0)) for epoch in (5, 20))
    assert list(late) == ["ce", "tckd", "nckd"]
    torch.testing.assert_close(early["ce"], late["ce"])
    torch.testing.assert_close(late["ce"], 0.5 * torch.nn.functional.cross_entropy(student, labels))
    torch.testing.assert_close(late["tckd"] + late["nckd"], dkd_loss(student, teacher, labels, **NUMBERS))
    for term in ("tckd", "nckd"):
        torch.testing.assert_close(early[term], late[term] / 4)
