"""Similarity-preserving distillation against its formula written as loops."""

import pytest
import torch

import small_pairs
from distill.distillers.sp import similarities, sp_loss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def similarities_by_loops(maps):
    rows = [x.flatten() for x in maps]
    found = []
    for a in rows:
        products = [sum(a * b) for b in rows]
        length = sum(p**2 for p in products) ** 0.5
        found += [p / length for p in products]
    return found


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_value_and_gradient_equal_the_formula(rows):
    s = torch.randn(rows, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    t = torch.randn(rows, 4, 2, 2, dtype=torch.float64)
    gaps = [(a - b) ** 2 for a, b in zip(similarities_by_loops(s), similarities_by_loops(t), strict=True)]
    fast, slow = sp_loss(s, t), sum(gaps) / len(gaps)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (fast, slow)), rtol=1e-9, atol=1e-14)


def test_a_sample_without_activity_is_like_none_and_gets_no_gradient():
    x = torch.rand(3, 4)
    x[1] = 0
    x.requires_grad_()
    found = similarities(x)
    assert (found[1] == 0).all()
    assert (found[:, 1] == 0).all()
    (gradient,) = torch.autograd.grad(sp_loss(x, torch.rand(3, 5)), x)
    assert gradient.abs().max() < 10


def test_turning_the_features_changes_nothing():
    s, t = torch.randn(2, 6, 4, dtype=torch.float64).unbind()
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    torch.testing.assert_close(sp_loss(s @ turn, t), sp_loss(s, t))


def test_the_method_compares_the_last_stages():
    node = {"_target_": "distill.distillers.sp.SP", "ce_weight": 0.5, "sp_weight": 10.0}
    method, student, teacher = small_pairs.build(node, "wrn", "mobilenetv2")
    step = small_pairs.step_of(method, student, teacher)
    terms = method(step)
    assert list(terms) == ["ce", "sp"]
    ce = torch.nn.functional.cross_entropy(step.student.logits, step.batch.labels)
    torch.testing.assert_close(terms["ce"], 0.5 * ce)
    torch.testing.assert_close(terms["sp"], 10 * sp_loss(step.student.stages[4], step.teacher.stages[3]))
