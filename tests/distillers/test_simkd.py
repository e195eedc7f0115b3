"""SimKD: its loss by loops, published sizes, what is trained, and what is deployed."""

import pytest
import torch
from torch import nn

import harness
import small_pairs
from distill.distillers.simkd import Reader, Reused, SimKD, simkd_loss
from distill.errors import UserError
from distill.types import Shapes, Spec

NODE = harness.yaml(harness.CONF / "distiller/simkd.yaml")
# what of a student leads to nothing but its own scores
UNREAD = {
    "resnet": ("fc.",),
    "wrn": ("fc.",),
    "vgg": ("classifier.",),
    "mobilenetv2": ("conv2.", "classifier."),
    "shufflenetv1": ("linear.",),
    "shufflenetv2": ("conv2.", "bn2.", "linear."),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def by_loops(student, teacher):
    """Squares of one element after the other, the teacher's a mean over a field."""
    rows, channels, height, width = student.shape
    field, total = teacher.shape[2] // height, 0
    for b in range(rows):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    part = teacher[b, c, i * field : (i + 1) * field, j * field : (j + 1) * field]
                    total = total + (student[b, c, i, j] - sum(part.flatten()) / field**2) ** 2
    return total / (rows * channels * height * width)


@pytest.mark.parametrize(("rows", "size"), [(1, 4), (2, 4), (2, 2)])
def test_value_and_gradient_equal_the_formula(rows, size):
    student = torch.randn(rows, 3, size, size, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(rows, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    fast, slow = simkd_loss(student, teacher), by_loops(student, teacher)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (fast, slow)), rtol=1e-12, atol=1e-15)
    fast = simkd_loss(student, teacher)
    fast.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_under_large_maps(dtype):
    student, teacher = (1e3 * torch.randn(2, 2, 3, 4, 4)).to(dtype).unbind()
    loss = simkd_loss(student.requires_grad_(), teacher)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def shapes(stage, final=None):
    channels, size = stage
    wide, high = final or stage
    return Shapes(100, ((16, 32, 32), (channels, size, size)), final=(wide, high, high), pooled=wide)


NARROW, WIDE, WRN_2, WRN_1 = (shapes((c, 8)) for c in (64, 256, 128, 64))
VGG, RESNET50 = shapes((512, 4)), shapes((2048, 4))
MOBILENETV2, SHUFFLENETV2 = shapes((160, 2), (1280, 2)), shapes((464, 4), (1024, 4))


@pytest.mark.parametrize(
    ("teacher", "student", "projector"),
    [
        (WIDE, WIDE, 214_016),  # ResNet32x4 -> ResNet8x4
        (WIDE, SHUFFLENETV2, 240_640),
        (WIDE, WRN_2, 197_632),  # ResNet32x4 -> WRN-16-2, WRN-40-2
        (WRN_2, WIDE, 61_952),  # WRN-40-2 -> ResNet8x4
        (WRN_2, MOBILENETV2, 55_808),
        (VGG, MOBILENETV2, 763_904),
        (RESNET50, MOBILENETV2, 11_706_368),
        (VGG, VGG, 854_016),
        (WRN_2, WRN_1, 49_664),
        (WRN_2, WRN_2, 53_760),
        (NARROW, NARROW, 13_568),  # ResNet56 and ResNet110 -> ResNet20 and ResNet32
    ],
)
def test_extra_parameters_are_those_of_the_public_code(teacher, student, projector):
    with torch.device("meta"):
        reader = Reader(student, teacher, reduction=2)
    assert sum(p.numel() for p in reader.parameters()) == projector


@pytest.mark.parametrize(("teacher", "student"), small_pairs.PAIRS)
def test_every_kind_of_pair_learns_what_is_read(teacher, student):
    small_pairs.assert_all_learn(NODE, teacher, student, frozen=UNREAD[student])


@pytest.mark.parametrize(("teacher", "student"), [("wrn", "wrn"), ("resnet50", "mobilenetv2"), ("mobilenetv2", "wrn")])
def test_what_is_deployed_answers_as_what_is_observed(teacher, student):
    method, small, large = small_pairs.build(NODE, teacher, student)
    composite = method.deploy(small, large)
    assert isinstance(composite, Reused)
    small.eval()
    method.eval()
    step = small_pairs.step_of(method, small, large)
    answer = composite(step.batch.images)
    assert torch.equal(answer.logits, step.student.logits)
    assert torch.equal(answer.final, step.student.final)
    head = large.classifier
    torch.testing.assert_close(answer.logits, answer.final.mean(dim=(2, 3)) @ head.weight.T + head.bias)
    assert torch.equal(composite.classifier.weight, head.weight)
    assert composite.classifier is not head
    own = {f"student.{name}" for name in small.state_dict()} | {f"reader.{name}" for name in method.reader.state_dict()}
    assert composite.state_dict().keys() == own


def test_true_wide_resnets_are_read_behind_their_last_norm():
    method, student, teacher = small_pairs.build(NODE, "wrn", "wrn")
    step = small_pairs.step_of(method, student, teacher)
    assert (step.teacher.final >= 0).all()
    pooled = step.teacher.final.mean(dim=(2, 3))
    torch.testing.assert_close(teacher.classify(pooled), step.teacher.logits)
    answer = student.eval()(step.batch.images)
    assert method.reader.source(answer) is answer.final


def test_the_probe_leaves_the_student_as_it_was():
    torch.manual_seed(0)
    student, teacher = small_pairs.FAMILIES["mobilenetv2"](), small_pairs.FAMILIES["wide"]().eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.conv1.eval()
    modes = [module.training for module in student.modules()]
    method = SimKD(
        Spec(student.shapes(32), teacher.shapes(32), 7, 8, torch.arange(8), 8),
        reduction=2,
        ce_weight=0.0,
        simkd_weight=1.0,
    )
    with torch.no_grad():  # whatever the context
        method.prepare(student, teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert [module.training for module in student.modules()] == modes
    assert all(p.grad is None for p in student.parameters())


def test_a_task_may_be_added():
    method, student, teacher = small_pairs.build({**NODE, "ce_weight": 0.5}, "wide", "resnet")
    step = small_pairs.step_of(method, student, teacher)
    terms = method(step)
    assert list(terms) == ["ce", "simkd"]
    torch.testing.assert_close(terms["ce"], 0.5 * nn.functional.cross_entropy(step.student.logits, step.batch.labels))


def test_scores_are_not_rounded_under_autocast():
    method, student, teacher = small_pairs.build(NODE, "wide", "resnet")
    with torch.autocast("cpu", torch.bfloat16):
        answer = method.deploy(student.eval(), teacher).eval()(torch.rand(2, 3, 32, 32))
    assert answer.logits.dtype == torch.float32
    head = teacher.classifier
    expected = answer.pooled.float() @ head.weight.T + head.bias
    torch.testing.assert_close(answer.logits, expected, rtol=1e-5, atol=1e-6)


def test_the_projector_needs_channels():
    spec = Spec(NARROW, NARROW, 100, 8, torch.arange(8), 8)
    with pytest.raises(UserError, match="reduction=65 must be from 1 to the teacher's 64 channels"):
        SimKD(spec, reduction=65, ce_weight=0.0, simkd_weight=1.0)


def test_a_network_of_logits_alone_is_refused():
    spec = Spec(Shapes(100), NARROW, 100, 8, torch.arange(8), 8)
    with pytest.raises(UserError, match="distiller SimKD reads the feature map that is pooled, which this student"):
        SimKD(spec, reduction=2, ce_weight=0.0, simkd_weight=1.0)
