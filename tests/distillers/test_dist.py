"""DIST against its formulas written as loops, and what must hold for any input."""

from unittest.mock import patch

import pytest
import torch

from distill import memory
from distill.distillers.dist import DIST, dist_loss, inter_loss, intra_loss, pearson_distance
from distill.types import Batch, Output, Shapes, Spec, Step

NUMBERS = {"beta": 2.0, "gamma": 3.0, "temperature": 4.0}
SPEC = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=6, labels=torch.arange(6), batch_size=6)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def distance_by_loops(a, b):
    """1 - covariance / (deviation * deviation), from plain sums; the authors' epsilon keeps the sums' scale."""
    n = len(a)
    mean_a, mean_b = sum(a) / n, sum(b) / n
    shared = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = [sum((x - mean) ** 2 for x in row) ** 0.5 for row, mean in ((a, mean_a), (b, mean_b))]
    return 1 - shared / (spread[0] * spread[1] + 1e-8)


def dist_by_loops(student, teacher, *, beta, gamma, temperature):
    probabilities = []
    for logits in (student, teacher):
        rows = [[torch.exp(z / temperature) for z in row] for row in logits]
        probabilities.append([[p / sum(row) for p in row] for row in rows])
    s, t = probabilities
    inter = [distance_by_loops(a, b) for a, b in zip(s, t, strict=True)]
    columns = zip(zip(*s, strict=True), zip(*t, strict=True), strict=True)
    intra = [distance_by_loops(a, b) for a, b in columns] if len(s) > 1 else [1.0]
    return temperature**2 * (beta * sum(inter) / len(inter) + gamma * sum(intra) / len(intra))


def make(rows=6, classes=7):
    student = torch.randn(rows, classes, dtype=torch.float64, requires_grad=True)
    return student, 3 * torch.randn(rows, classes, dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize(
    "numbers", [NUMBERS, NUMBERS | {"temperature": 1.0}, NUMBERS | {"beta": 0.0}, NUMBERS | {"gamma": 0.0}]
)
def test_value_and_gradient_equal_the_formula(rows, numbers):
    student, teacher = make(rows)
    fast, slow = dist_loss(student, teacher, **numbers), dist_by_loops(student, teacher, **numbers)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (fast, slow)), rtol=1e-8, atol=1e-11)


def test_is_zero_where_the_probabilities_agree_or_vary_alike():
    _, teacher = make()
    shifted = teacher + torch.arange(6.0)[:, None]
    assert dist_loss(shifted, teacher, **NUMBERS).item() == pytest.approx(0, abs=1e-4)  # the epsilon's size
    p = teacher.softmax(dim=1)
    flatter = (0.5 * p + 0.5 / 7).log()
    assert inter_loss(flatter, teacher, temperature=1.0).item() == pytest.approx(0, abs=1e-6)
    assert intra_loss(flatter, teacher, temperature=1.0).item() == pytest.approx(0, abs=1e-6)
    assert dist_loss(teacher.roll(1, dims=1), teacher, **NUMBERS) > 1


def test_the_distance_is_two_for_opposites_and_one_for_a_constant_row():
    a = torch.tensor([[1.0, 2.0, 4.0], [5.0, 5.0, 5.0]])
    assert pearson_distance(a, -2 * a).tolist() == pytest.approx([2, 1])


def test_one_sample_alone_has_no_intra_class_relation():
    student, teacher = make(rows=1)
    loss = intra_loss(student, teacher, temperature=4.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 16
    assert (gradient == 0).all()


@pytest.mark.parametrize("scale", [1e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_stay_finite_under_large_logits_and_equal_rows(scale, dtype):
    teacher = (scale * torch.randn(7, 7)).to(dtype)
    for rows in (-teacher, teacher, torch.zeros_like(teacher), teacher[:1].expand(7, 7)):
        student = rows.clone().requires_grad_()
        loss = dist_loss(student, teacher, **NUMBERS)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert student.grad.isfinite().all()


def test_half_precision_logits_are_computed_in_float32():
    student, teacher = (20 * torch.randn(2, 5, 7)).bfloat16().unbind()
    loss = dist_loss(student, teacher, **NUMBERS)
    assert torch.equal(loss, dist_loss(student.float(), teacher.float(), **NUMBERS))


@pytest.mark.parametrize("shares", [(3, 3), (4, 1, 1)])
def test_ranks_of_unequal_shares_add_up_to_the_joined_batch_and_each_says_its_value(shares):
    student, teacher = make()
    whole = intra_loss(student, teacher, temperature=4.0)
    (expected,) = torch.autograd.grad(whole, student)
    total = torch.zeros_like(student)
    for rank, count in enumerate(shares):
        first = sum(shares[:rank])
        own = student.detach()[first : first + count].clone().requires_grad_()
        batch = Batch(torch.empty(0), torch.zeros(count), torch.zeros(count), rows=shares)
        joined = {"gather": lambda rows, counts: student.detach(), "first_row": lambda counts, first=first: first}
        with patch.multiple(memory, **joined):
            loss = memory.of_joined(intra_loss(memory.among_all(own, shares), teacher, temperature=4.0), batch)
        torch.testing.assert_close(loss, whole)
        (gradient,) = torch.autograd.grad(loss, own)
        total[first : first + count] += count / 6 * gradient  # the training loop's weight
    torch.testing.assert_close(total, expected)


def test_the_method_weighs_its_terms_and_the_teacher_gets_no_gradient():
    student, teacher = make()
    teacher.requires_grad_()
    labels = torch.tensor([0, 3, 3, 6, 1, 2])
    step = Step(Batch(torch.empty(0), labels, torch.arange(6)), Output(student), Output(teacher), epoch=1, step=0)
    terms = DIST(SPEC, **NUMBERS, ce_weight=0.5)(step)
    assert list(terms) == ["ce", "inter", "intra"]
    torch.testing.assert_close(terms["ce"], 0.5 * torch.nn.functional.cross_entropy(student, labels))
    torch.testing.assert_close(terms["inter"] + terms["intra"], dist_loss(student, teacher, **NUMBERS))
    torch.testing.assert_close(terms["inter"], 2 * inter_loss(student, teacher, temperature=4.0))
    sum(terms.values()).backward()
    assert student.grad is not None
    assert teacher.grad is None
