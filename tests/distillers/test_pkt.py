"""Probabilistic knowledge transfer against its formula written as loops."""

import pytest
import torch

import small_pairs
from distill.distillers.pkt import neighbours, pkt_loss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def neighbours_by_loops(x):
    rows = [row / sum(row**2) ** 0.5 for row in x]
    found = []
    for a in rows:
        closeness = [(sum(a * b) + 1) / 2 for b in rows]
        found += [value / sum(closeness) for value in closeness]
    return found


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_value_and_gradient_equal_the_formula(rows):
    s = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    t = torch.randn(rows, 6, dtype=torch.float64)
    terms = [
        q * torch.log((q + 1e-7) / (p + 1e-7))
        for p, q in zip(neighbours_by_loops(s), neighbours_by_loops(t), strict=True)
    ]
    fast, slow = pkt_loss(s, t), sum(terms) / len(terms)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (fast, slow)), rtol=1e-8, atol=1e-14)


def test_neighbours_are_probabilities_and_opposites_are_none():
    x = torch.tensor([[1.0, 1.0, 1.0], [-3.0, -3.0, -3.0], [0.0, 0.0, 0.0]])
    found = neighbours(x)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    assert (found >= 0).all()
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0.0, 0.5]) / 1.5, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[2], torch.full((3,), 1 / 3))  # a sample without activity: all are as near


def test_opposites_of_any_direction_give_finite_losses():
    x = torch.randn(64, 5)
    both = torch.cat([x, -x]).requires_grad_()
    loss = pkt_loss(both, torch.cat([x, x]))
    (gradient,) = torch.autograd.grad(loss, both)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_the_method_compares_pooled_features():
    node = {"_target_": "distill.distillers.pkt.PKT", "ce_weight": 0.5, "pkt_weight": 1000.0}
    method, student, teacher = small_pairs.build(node, "wrn", "mobilenetv2")
    step = small_pairs.step_of(method, student, teacher)
    terms = method(step)
    assert list(terms) == ["ce", "pkt"]
    ce = torch.nn.functional.cross_entropy(step.student.logits, step.batch.labels)
    torch.testing.assert_close(terms["ce"], 0.5 * ce)
    torch.testing.assert_close(terms["pkt"], 1000 * pkt_loss(step.student.pooled, step.teacher.pooled))
