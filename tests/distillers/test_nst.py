"""Neuron selectivity transfer against its kernels written as loops."""

import pytest
import torch

import small_pairs
from distill.distillers.nst import nst_loss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def halved(maps):
    """Means over 2 x 2 positions."""
    return sum(maps[..., i::2, j::2] for i in range(2) for j in range(2)) / 4


def kernel_by_loops(a, b):
    """Mean of (x . y)² over the channels of two maps of one sample."""
    a, b = ([x.flatten() / sum(x.flatten() ** 2) ** 0.5 for x in maps] for maps in (a, b))
    products = [sum(x * y) ** 2 for x in a for y in b]
    return sum(products) / len(products)


def nst_by_loops(s, t):
    if s.shape[-1] > t.shape[-1]:
        s = halved(s)
    elif s.shape[-1] < t.shape[-1]:
        t = halved(t)
    pairs = zip(s, t, strict=True)
    terms = [kernel_by_loops(a, a) + kernel_by_loops(b, b) - 2 * kernel_by_loops(a, b) for a, b in pairs]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((2, 4), (3, 4)), ((2, 4), (3, 2)), ((2, 2), (3, 4)), ((5, 2), (7, 2)), ((2, 2), (4, 2))],
)
def test_value_and_gradient_equal_the_formula(student, teacher):
    """With fewer channels than positions, and with more."""
    s = torch.randn(3, student[0], student[1], student[1], dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, teacher[0], teacher[1], teacher[1], dtype=torch.float64)
    fast, slow = nst_loss(s, t), nst_by_loops(s, t)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (fast, slow)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("size", [2, 6])
def test_which_channel_is_active_does_not_matter(size):
    s, t = torch.randn(2, 3, 8, size, size).unbind()
    torch.testing.assert_close(nst_loss(-s.flip(1), t), nst_loss(s, t))
    assert nst_loss(t.flip(1), t).item() == pytest.approx(0, abs=1e-6)


def test_the_method_sums_over_the_stages_that_meet():
    node = {"_target_": "distill.distillers.nst.NST", "ce_weight": 0.5, "nst_weight": 10.0}
    method, student, teacher = small_pairs.build(node, "resnet50", "resnet")
    step = small_pairs.step_of(method, student, teacher)
    terms = method(step)
    assert list(terms) == ["ce", "nst"]
    ce = torch.nn.functional.cross_entropy(step.student.logits, step.batch.labels)
    torch.testing.assert_close(terms["ce"], 0.5 * ce)
    s, t = step.student.stages, step.teacher.stages
    total = sum(nst_loss(s[i], t[j]) for i, j in [(1, 2), (2, 3), (3, 4)])
    torch.testing.assert_close(terms["nst"], 10 * total)
