"""FitNets: the hint's loss written as loops, and the regressor for every ratio of sizes."""

import pytest
import torch
from torch import nn

import small_pairs
from distill.distillers.fitnet import FitNet, fitnet_loss, regressor
from distill.errors import UserError
from distill.types import Batch, Output, Shapes, Spec, Step

NODE = {"_target_": "distill.distillers.fitnet.FitNet", "hint": 2, "ce_weight": 0.5, "fitnet_weight": 10.0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_value_and_gradient_equal_the_formula():
    s = torch.randn(3, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 2, 2, 4, dtype=torch.float64)
    fast = fitnet_loss(s, t)
    squares = [(a - b) ** 2 for a, b in zip(s.flatten(), t.flatten(), strict=True)]
    slow = sum(squares) / len(squares)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (fast, slow)), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("size", "target", "kind", "kernel", "found"),
    [
        (8, 8, nn.Conv2d, (1, 1), 8),
        (16, 8, nn.Conv2d, (3, 3), 8),
        (8, 16, nn.ConvTranspose2d, (4, 4), 16),
        (14, 8, nn.Conv2d, (7, 7), 8),
        (28, 7, nn.Conv2d, (22, 22), 7),
        (4, 14, nn.Conv2d, (1, 1), 4),  # the teacher's map is shrunk instead
    ],
)
def test_the_regressor_fits_the_sizes(size, target, kind, kernel, found):
    module = regressor((3, size, size), (5, target, target))
    assert type(module[0]) is kind
    assert module[0].kernel_size == kernel
    out = module(torch.randn(2, 3, size, size))
    assert out.shape == (2, 5, found, found)
    assert (out >= 0).all()


@pytest.mark.parametrize(("teacher", "student"), [("wide", "resnet"), ("vgg", "resnet"), ("resnet50", "mobilenetv2")])
def test_the_method_regresses_the_second_stage_of_both(teacher, student):
    method, small, large = small_pairs.build(NODE, teacher, student)
    step = small_pairs.step_of(method, small, large)
    terms = method(step)
    assert list(terms) == ["ce", "fitnet"]
    ce = nn.functional.cross_entropy(step.student.logits, step.batch.labels)
    torch.testing.assert_close(terms["ce"], 0.5 * ce)
    regressed = method.regressor(step.student.stages[2])
    torch.testing.assert_close(terms["fitnet"], 10 * (regressed - step.teacher.stages[2]).square().mean())


def test_a_much_larger_map_of_the_teacher_is_averaged():
    shapes = [Shapes(7, stages=((3, size, size),) * 3) for size in (4, 16)]
    method = FitNet(Spec(*shapes, 7, 8, torch.arange(8) % 7, 8), hint=2, ce_weight=0.0, fitnet_weight=1.0)
    s, t = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 16, 16)
    answers = (Output(torch.zeros(8, 7), stages=(x,) * 3) for x in (s, t))
    step = Step(Batch(torch.empty(0), torch.arange(8) % 7, torch.arange(8)), *answers, epoch=1, step=0)
    small = nn.functional.avg_pool2d(t, 4)
    torch.testing.assert_close(method(step)["fitnet"], (method.regressor(s) - small).square().mean())


@pytest.mark.parametrize("hint", [0, 4, -1])
def test_a_hint_that_one_network_has_not_is_refused(hint):
    shapes = [Shapes(7, stages=((3, 8, 8),) * count) for count in (5, 4)]
    with pytest.raises(UserError, match=f"hint={hint} must be a stage of both networks: 1 to 3"):
        FitNet(Spec(*shapes, 7, 8, torch.arange(8) % 7, 8), hint=hint, ce_weight=1.0, fitnet_weight=1.0)
