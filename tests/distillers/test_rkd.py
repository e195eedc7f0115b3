"""Relational distillation against its formulas written as loops."""

import pytest
import torch

import small_pairs
from distill.distillers.rkd import angle_loss, cosines, distance_loss, distances, rkd_loss

WEIGHTS = {"distance_weight": 25.0, "angle_weight": 50.0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def huber(a, b):
    gap = abs(a - b)
    return 0.5 * gap**2 if gap < 1 else gap - 0.5


def distances_by_loops(x):
    n = len(x)
    lengths = {(i, j): sum((x[i] - x[j]) ** 2) ** 0.5 for i in range(n) for j in range(n) if i != j}
    mean = sum(lengths.values()) / len(lengths) if lengths else 1.0
    return [lengths[i, j] / mean if i != j else 0 * x[0].sum() for i in range(n) for j in range(n)]


def cosines_by_loops(x):
    n = len(x)

    def direction(i, j):
        return (x[j] - x[i]) / sum((x[j] - x[i]) ** 2) ** 0.5

    return [
        0 * x[0].sum() if i in (j, k) else sum(direction(i, j) * direction(i, k))
        for i in range(n)
        for j in range(n)
        for k in range(n)
    ]


def rkd_by_loops(s, t, *, distance_weight, angle_weight):
    total = 0
    for relation, weight in ((distances_by_loops, distance_weight), (cosines_by_loops, angle_weight)):
        gaps = [huber(a, b) for a, b in zip(relation(s), relation(t), strict=True)]
        total += weight * sum(gaps) / len(gaps)
    return total


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS | {"distance_weight": 0.0}, WEIGHTS | {"angle_weight": 0.0}])
def test_value_and_gradient_equal_the_formula(rows, weights):
    s = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    t = torch.randn(rows, 6, dtype=torch.float64)
    t[0] *= 30  # far out, for the linear part of the Huber loss
    fast, slow = rkd_loss(s, t, **weights), rkd_by_loops(s, t, **weights)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (fast, slow)), rtol=1e-8, atol=1e-12)


def test_relations_of_a_right_triangle():
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    torch.testing.assert_close(distances(x), torch.tensor([[0, 3, 4], [3, 0, 5], [4, 5, 0]]) / 4)
    assert cosines(x)[0, 1, 2] == 0
    assert cosines(x)[1, 0, 2].item() == pytest.approx(3 / 5)
    assert cosines(x)[2, 0, 1].item() == pytest.approx(4 / 5)


def test_turning_shifting_and_scaling_the_features_changes_nothing():
    s, t = torch.randn(2, 6, 4, dtype=torch.float64).unbind()
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    torch.testing.assert_close(rkd_loss(7 * s @ turn + 3, t, **WEIGHTS), rkd_loss(s, t, **WEIGHTS))


def test_samples_that_coincide_pull_at_nothing():
    s = torch.randn(4, 3)
    s[1] = s[0]
    s.requires_grad_()
    t = torch.randn(4, 3)
    for loss in (distance_loss, angle_loss):
        (gradient,) = torch.autograd.grad(loss(s, t), s)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 10
        torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    assert cosines(s)[0, 1].eq(0).all()


def test_a_sample_alone_has_no_relations():
    s = torch.randn(1, 3, requires_grad=True)
    loss = rkd_loss(s, torch.randn(1, 5), **WEIGHTS)
    (gradient,) = torch.autograd.grad(loss, s)
    assert loss == 0
    assert (gradient == 0).all()


def test_the_method_weighs_both_relations_of_pooled_features():
    node = {"_target_": "distill.distillers.rkd.RKD", "ce_weight": 0.5, **WEIGHTS}
    method, student, teacher = small_pairs.build(node, "vgg", "mobilenetv2")
    step = small_pairs.step_of(method, student, teacher)
    terms = method(step)
    assert list(terms) == ["ce", "distance", "angle"]
    ce = torch.nn.functional.cross_entropy(step.student.logits, step.batch.labels)
    torch.testing.assert_close(terms["ce"], 0.5 * ce)
    pooled = step.student.pooled, step.teacher.pooled
    torch.testing.assert_close(terms["distance"], 25 * distance_loss(*pooled))
    torch.testing.assert_close(terms["angle"], 50 * angle_loss(*pooled))
