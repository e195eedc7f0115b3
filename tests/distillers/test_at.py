"""Attention transfer against its formula written as loops."""

import pytest
import torch

import small_pairs
from distill.distillers.at import AT, at_loss, attention
from distill.errors import UserError
from distill.types import Shapes, Spec


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def halved(maps):
    """Means over 2 x 2 positions."""
    return sum(maps[..., i::2, j::2] for i in range(2) for j in range(2)) / 4


def attention_by_loops(maps, power):
    """Of one sample: a list over positions."""
    channels, height, width = maps.shape
    found = [
        sum(abs(maps[c, y, x]) ** power for c in range(channels)) / channels
        for y in range(height)
        for x in range(width)
    ]
    length = sum(value**2 for value in found) ** 0.5
    return [value / length for value in found]


def at_by_loops(s, t, power):
    if s.shape[-1] > t.shape[-1]:
        s = halved(s)
    elif s.shape[-1] < t.shape[-1]:
        t = halved(t)
    squares = []
    for one, other in zip(s, t, strict=True):
        a, b = attention_by_loops(one, power), attention_by_loops(other, power)
        squares += [(p - q) ** 2 for p, q in zip(a, b, strict=True)]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 2), (2, 4)])
def test_value_and_gradient_equal_the_formula(sizes, power):
    s = torch.randn(3, 2, sizes[0], sizes[0], dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 5, sizes[1], sizes[1], dtype=torch.float64)
    fast, slow = at_loss(s, t, power=power), at_by_loops(s, t, power)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (fast, slow)), rtol=1e-9, atol=1e-14)


def test_attention_is_where_channels_are_active_and_blind_to_which():
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, :, 1, 0] = torch.tensor([0.0, -5.0, 0.0])
    assert attention(maps, power=2.0).tolist() == [[0, 0, 1, 0]]
    x, y = torch.randn(2, 4, 3, 6, 6).unbind()
    mixed = x[:, [2, 0, 1]] * torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    torch.testing.assert_close(at_loss(mixed, y, power=2.0), at_loss(x, y, power=2.0))


def test_the_method_sums_over_the_stages_that_meet():
    node = {"_target_": "distill.distillers.at.AT", "power": 2.0, "ce_weight": 0.5, "at_weight": 10.0}
    method, student, teacher = small_pairs.build(node, "resnet50", "resnet")
    step = small_pairs.step_of(method, student, teacher)
    terms = method(step)
    assert list(terms) == ["ce", "at"]
    ce = torch.nn.functional.cross_entropy(step.student.logits, step.batch.labels)
    torch.testing.assert_close(terms["ce"], 0.5 * ce)
    s, t = step.student.stages, step.teacher.stages
    total = sum(at_loss(s[i], t[j], power=2.0) for i, j in [(1, 2), (2, 3), (3, 4)])
    torch.testing.assert_close(terms["at"], 10 * total)


def test_a_power_without_a_gradient_at_zero_is_refused():
    shapes = Shapes(7, stages=((4, 8, 8),) * 3)
    with pytest.raises(UserError, match=r"power=0\.5 must be at least 1"):
        AT(Spec(shapes, shapes, 7, 8, torch.arange(8) % 7, 8), power=0.5, ce_weight=1.0, at_weight=1.0)
