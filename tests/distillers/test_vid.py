"""Variational information distillation against the Gaussian's likelihood, and its trained variances."""

import math

import pytest
import torch
from torch.distributions import Normal

import small_pairs
from distill.distillers.vid import VID, Prediction, vid_loss
from distill.errors import UserError
from distill.types import Shapes, Spec

NODE = {"_target_": "distill.distillers.vid.VID", "initial_variance": 5.0, "ce_weight": 0.5, "vid_weight": 10.0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def vid_by_loops(s, t, variance):
    rows, channels, height, width = s.shape
    terms = [
        0.5 * ((s[b, c, y, x] - t[b, c, y, x]) ** 2 / variance[c] + torch.log(variance[c]))
        for b in range(rows)
        for c in range(channels)
        for y in range(height)
        for x in range(width)
    ]
    return sum(terms) / len(terms)


def test_value_and_gradient_equal_the_formula():
    s = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    variance = torch.tensor([0.1, 1.0, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    fast, slow = vid_loss(s, t, variance), vid_by_loops(s, t, variance)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(x, (s, variance)) for x in (fast, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_is_the_likelihood_of_a_gaussian_up_to_its_constant():
    s, t = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64).unbind()
    variance = torch.rand(4, dtype=torch.float64) + 0.1
    likelihood = Normal(s, variance.sqrt()[:, None, None]).log_prob(t).mean()
    torch.testing.assert_close(vid_loss(s, t, variance), -likelihood - 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("variance", [5.0, 0.5, 1e-3])
def test_variances_start_as_they_are_told_and_are_trained(variance):
    predict = Prediction(3, 4, initial_variance=variance)
    torch.testing.assert_close(predict.variance, torch.full((4,), variance), rtol=1e-4, atol=0)
    before = predict.variance.detach()
    s, t = torch.randn(8, 3, 4, 4), torch.randn(8, 4, 4, 4)
    predict(s, t).backward()
    torch.optim.SGD(predict.parameters(), lr=0.01).step()
    upwards = torch.full((4,), variance < 1)  # the teacher's is 1, and s says nothing of it
    assert torch.equal(predict.variance > before, upwards)
    assert torch.equal(predict.variance < before, ~upwards)


def test_convolutions_have_no_bias_and_the_published_widths():
    predict = Prediction(3, 5, initial_variance=5.0)
    assert [tuple(p.shape) for p in predict.mean.parameters()] == [(5, 3, 1, 1), (5, 5, 1, 1), (5, 5, 1, 1)]
    assert isinstance(predict.spread, torch.nn.Parameter)


@pytest.mark.parametrize("sizes", [(8, 4), (4, 8), (4, 4)])
def test_the_larger_map_is_averaged(sizes):
    predict = Prediction(3, 5, initial_variance=5.0)
    s, t = torch.randn(2, 3, sizes[0], sizes[0]), torch.randn(2, 5, sizes[1], sizes[1])
    small = [torch.nn.functional.avg_pool2d(x, x.shape[-1] // 4) for x in (s, t)]
    torch.testing.assert_close(predict(s, t), vid_loss(predict.mean(small[0]), small[1], predict.variance))


def test_the_method_sums_over_the_stages_that_meet():
    method, student, teacher = small_pairs.build(NODE, "wrn", "mobilenetv2")
    step = small_pairs.step_of(method, student, teacher)
    terms = method(step)
    assert list(terms) == ["ce", "vid"]
    ce = torch.nn.functional.cross_entropy(step.student.logits, step.batch.labels)
    torch.testing.assert_close(terms["ce"], 0.5 * ce)
    s, t = step.student.stages, step.teacher.stages
    total = sum(p(s[i], t[j]) for p, (i, j) in zip(method.predictions, [(2, 1), (3, 2), (4, 3)], strict=True))
    torch.testing.assert_close(terms["vid"], 10 * total)


def test_no_variance_at_all_is_refused():
    shapes = Shapes(7, stages=((4, 8, 8),) * 3)
    with pytest.raises(UserError, match=r"initial_variance=0\.0 must be more than"):
        VID(Spec(shapes, shapes, 7, 8, torch.arange(8) % 7, 8), initial_variance=0.0, ce_weight=1.0, vid_weight=1.0)
