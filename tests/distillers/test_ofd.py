"""OFD against loops, its margins against integrals, and on every kind of pair."""

import math

import pytest
import torch
from torch import nn

import harness
import small_pairs
from distill.distillers.ofd import OFD, negative_mean, ofd_loss
from distill.models.wrn import WideResNet
from distill.types import Batch, Output, Shapes, Spec, Step

NODE = harness.yaml(harness.CONF / "distiller/ofd.yaml")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(rows=3, channels=4, size=5):
    student = torch.randn(rows, channels, size, size, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(rows, channels, size, size, dtype=torch.float64)
    return student, teacher, -torch.rand(channels, dtype=torch.float64)


def by_cases(student, teacher, margin):
    """The same distance written as three cases of the teacher's value, one element after the other."""
    total = 0
    for s_row, t_row in zip(student, teacher, strict=True):
        for s_map, t_map, m in zip(s_row, t_row, margin, strict=True):
            for s, t in zip(s_map.flatten(), t_map.flatten(), strict=True):
                if t > 0:
                    total = total + (s - t) ** 2
                elif t > m:
                    total = total + ((s - t) ** 2 if s > t else 0 * s)
                else:
                    total = total + ((s - m) ** 2 if s > m else 0 * s)
    return total / len(student)


@pytest.mark.parametrize("rows", [1, 3])
def test_value_and_gradient_equal_the_three_cases(rows):
    student, teacher, margin = make(rows)
    fast, slow = ofd_loss(student, teacher, margin), by_cases(student, teacher, margin)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (fast, slow)), rtol=1e-12, atol=1e-14)


def test_nothing_counts_below_the_margin_and_where_the_student_agrees():
    _, teacher, margin = make()
    below = -1 - torch.rand_like(teacher)
    assert ofd_loss(below, below.flip(0), margin) == 0
    assert ofd_loss(torch.maximum(teacher, margin[:, None, None]), teacher, margin) == 0


@pytest.mark.parametrize("ratio", [-30.0, -4.0, -1.0, -0.1, 0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("deviation", [0.02, 1.0, -7.0])
def test_a_margin_is_the_integral_over_negative_values(ratio, deviation):
    s = abs(deviation)
    mean = ratio * s
    x = torch.linspace(min(mean, 0.0) - 12 * s, 0.0, 400_001, dtype=torch.float64)
    density = torch.exp(-(((x - mean) / s) ** 2) / 2)
    expected = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
    found = negative_mean(torch.tensor([mean]), torch.tensor([deviation]))
    torch.testing.assert_close(found, expected[None], rtol=1e-5, atol=0)


def test_margins_of_channels_that_are_hardly_ever_negative_or_never_vary():
    mean, deviation = torch.tensor([3.2, 100.0, 5.0, -5.0, 0.0]), torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0])
    expected = torch.tensor([-3.0, -6.0, 0.0, -5.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(negative_mean(mean, deviation), expected, rtol=1e-12, atol=1e-300)


def test_deeper_stages_count_twice_and_larger_teachers_are_averaged():
    stages = ((9, 32, 32), (2, 8, 8), (3, 4, 4), (4, 2, 2))
    student = Shapes(7, stages, stages[1:])
    teacher = Shapes(7, ((9, 32, 32), (2, 16, 16), (3, 4, 4), (4, 1, 1)), ((2, 16, 16), (3, 4, 4), (4, 1, 1)))
    method = OFD(Spec(student, teacher, 7, 8, torch.arange(8), 8), ce_weight=0.5, ofd_weight=0.1)
    method.connectors = nn.ModuleList([nn.Identity()] * 3)
    own, other = ([torch.randn(2, *shape).double() for shape in shapes.preacts] for shapes in (student, teacher))
    margins = [-torch.rand(channels) for channels in (2, 3, 4)]
    for place, margin in enumerate(margins):
        method.get_buffer(f"margin{place}").copy_(margin)
    logits, labels = torch.randn(2, 7), torch.tensor([3, 5])
    batch = Batch(torch.empty(0), labels, torch.arange(2))
    answers = [Output(logits, (x[0], *x), tuple(x)) for x in (own, other)]
    terms = method(Step(batch, *answers, epoch=1, step=0))

    pooled = other[0].view(2, 2, 8, 2, 8, 2).mean(dim=(3, 5))
    small = own[2].mean(dim=(2, 3), keepdim=True)
    pairs = (own[0], pooled), (own[1], other[1]), (small, other[2])
    losses = [by_cases(s, t, m.double()) for (s, t), m in zip(pairs, margins, strict=True)]
    assert terms["ofd"].item() == pytest.approx(0.1 * (losses[0] / 4 + losses[1] / 2 + losses[2]).item(), rel=1e-12)
    torch.testing.assert_close(terms["ce"], 0.5 * nn.functional.cross_entropy(logits, labels))


def test_margins_come_from_the_teachers_norms_and_stay_out_of_checkpoints():
    method, _, teacher = small_pairs.build(NODE, "resnet50", "resnet")
    for place, norm in enumerate(teacher.norms):
        expected = negative_mean(norm.bias, norm.weight).float()
        assert torch.equal(method.get_buffer(f"margin{place}"), expected)
        assert (expected < 0).all()
    assert not [name for name in method.state_dict() if "margin" in name]
    without, _, _ = small_pairs.build(NODE, "shufflenetv2", "vgg")
    assert not any(margin.any() for name, margin in without.named_buffers() if "margin" in name)


def test_connectors_start_as_published():
    shapes = [Shapes(100, tuple((c, 8, 8) for c in (16, w, 2 * w, 4 * w))) for w in (32, 64)]
    method = OFD(Spec(*shapes, 100, 8, torch.arange(8), 8), ce_weight=1.0, ofd_weight=1.0)
    assert [connect[0].weight.shape[:2] for connect in method.connectors] == [(64, 32), (128, 64), (256, 128)]
    for connect in method.connectors:
        assert connect[0].weight.std().item() == pytest.approx(math.sqrt(2 / len(connect[0].weight)), rel=0.05)
        assert connect[0].bias is None


def test_a_wide_resnets_norms_run_once_per_step():
    student = WideResNet(depth=10, widen_factor=1, num_classes=7)
    teacher = small_pairs.FAMILIES["wrn"]().eval()
    spec = Spec(student.shapes(32), teacher.shapes(32), 7, 8, torch.arange(8), 8)
    method = OFD(spec, ce_weight=1.0, ofd_weight=1.0)
    method.prepare(student, teacher)
    method(small_pairs.step_of(method, student, teacher))
    assert all(n.num_batches_tracked == 1 for n in student.modules() if isinstance(n, nn.BatchNorm2d))


@pytest.mark.parametrize(("teacher", "student"), small_pairs.PAIRS)
def test_every_kind_of_pair_learns(teacher, student):
    small_pairs.assert_all_learn(NODE, teacher, student)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_under_large_maps(dtype):
    student, teacher, margin = make()
    large = (1e3 * student.detach()).to(dtype).requires_grad_()
    loss = ofd_loss(large, (1e3 * teacher).to(dtype), 1e3 * margin)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert large.grad.isfinite().all()


def test_the_teacher_gets_no_gradient():
    student, teacher, margin = make()
    ofd_loss(student, teacher.requires_grad_(), margin).backward()
    assert student.grad is not None
    assert teacher.grad is None
