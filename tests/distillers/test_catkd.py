"""CAT-KD against its formulas written as loops, its structure against a convolution before the pooling."""

import pytest
import torch
from torch import nn

import harness
import small_pairs
from distill.distillers.catkd import CATKD, cat_loss, class_maps
from distill.errors import UserError
from distill.types import Batch, Output, Shapes, Spec, Step

NODE = harness.yaml(harness.CONF / "distiller/catkd.yaml")
ACROSS = {**NODE, "size": 4, "normalize": True, "cat_weight": 80.0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def maps_by_loops(final, weight):
    positions = [(i, j) for i in range(final.shape[2]) for j in range(final.shape[3])]
    return [
        [
            {at: sum(w * f for w, f in zip(row, image[:, at[0], at[1]], strict=True)) for at in positions}
            for row in weight
        ]
        for image in final
    ]


def averaged(values, size):
    """Means of a square map over size x size equal fields."""
    step = int(len(values) ** 0.5) // size
    sums = {}
    for (i, j), value in values.items():
        place = i // step, j // step
        sums[place] = sums.get(place, 0) + value / step**2
    return [sums[i, j] for i in range(size) for j in range(size)]


def cat_by_loops(student, teacher, size, normalize):
    total, count = 0, 0
    for s_row, t_row in zip(student, teacher, strict=True):
        for s_map, t_map in zip(s_row, t_row, strict=True):
            both = [averaged(values, size) for values in (s_map, t_map)]
            if normalize:
                both = [[v / sum(u**2 for u in values) ** 0.5 for v in values] for values in both]
            for a, b in zip(*both, strict=True):
                total, count = total + (a - b) ** 2, count + 1
    return total / count


def make(rows=2, features=3, classes=4):
    """Final maps of student and teacher, of two sizes, and the classifiers' weights."""
    sizes = [(rows, features, 4, 4), (rows, features + 1, 8, 8)]
    finals = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    weights = [torch.randn(classes, f.shape[1], dtype=torch.float64, requires_grad=True) for f in finals]
    return finals, weights


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_value_and_gradient_equal_the_formula(rows, size, normalize):
    finals, weights = make(rows)
    maps = [class_maps(f, w) for f, w in zip(finals, weights, strict=True)]
    fast = cat_loss(*maps, size=size, normalize=normalize)
    slow = cat_by_loops(*(maps_by_loops(f, w) for f, w in zip(finals, weights, strict=True)), size, normalize)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    student = finals[0], weights[0]
    for a, b in zip(*(torch.autograd.grad(x, student) for x in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_the_teacher_gets_no_gradient():
    finals, weights = make()
    cat_loss(*(class_maps(f, w) for f, w in zip(finals, weights, strict=True)), size=2, normalize=True).backward()
    assert finals[0].grad is not None
    assert finals[1].grad is None
    assert weights[1].grad is None


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_under_large_and_empty_maps(dtype, normalize):
    for scale in (1e3, 0.0):
        finals, weights = make()
        student, teacher = (
            class_maps((scale * f.detach()).to(dtype).requires_grad_(), w) for f, w in zip(finals, weights, strict=True)
        )
        loss = cat_loss(student, teacher, size=2, normalize=normalize)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert weights[0].grad.isfinite().all()


def test_autocast_does_not_round_the_maps():
    final, weight = torch.randn(2, 5, 4, 4), torch.randn(7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = class_maps(final, weight)
    assert torch.equal(rounded, class_maps(final, weight))


def test_the_student_is_one_that_convolves_before_it_pools():
    """In the paper's structure, a convolution without bias in place of the classifier, the logits are the same."""
    method, student, teacher = small_pairs.build(NODE, "wide", "mobilenetv2")
    assert method.deploy(student, teacher) is student
    assert not student.classifier.bias.any()
    convolution = nn.Conv2d(1280, small_pairs.CLASSES, 1, bias=False)
    convolution.weight = nn.Parameter(student.classifier.weight[:, :, None, None])
    student.eval()
    answer = student(torch.rand(3, 3, 32, 32))
    torch.testing.assert_close(convolution(answer.final).mean(dim=(2, 3)), answer.logits, rtol=1e-5, atol=1e-6)


def test_of_the_teacher_the_bias_is_left_out_and_left_alone():
    method, student, teacher = small_pairs.build(NODE, "vgg", "resnet")
    nn.init.normal_(teacher.classifier.bias)
    bias = teacher.classifier.bias.clone()
    step = small_pairs.step_of(method, student, teacher)
    without = step.teacher.logits - bias
    torch.testing.assert_close(step.teacher.final.mean(dim=(2, 3)), without, rtol=1e-5, atol=1e-6)
    assert torch.equal(teacher.classifier.bias, bias)
    torch.testing.assert_close(step.student.final.mean(dim=(2, 3)), step.student.logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("teacher", "student"), small_pairs.PAIRS)
@pytest.mark.parametrize("node", [NODE, ACROSS], ids=["alike", "across"])
def test_every_kind_of_pair_learns(node, teacher, student):
    names = [name for name, _ in small_pairs.FAMILIES[student]().named_parameters()]
    small_pairs.assert_all_learn(node, teacher, student, frozen=(names[-1],))  # the classifier's bias


def test_terms_and_a_weight_of_zero():
    spec = Spec(*[Shapes(7, final=(3, 4, 4))] * 2, 7, 8, torch.arange(8), 8)
    logits, maps = torch.randn(2, 7), torch.randn(2, 2, 7, 4, 4)
    batch = Batch(torch.empty(0), torch.tensor([1, 2]), torch.arange(2))
    step = Step(batch, *(Output(logits, final=m) for m in maps), epoch=1, step=0)
    terms = CATKD(spec, size=2, normalize=False, ce_weight=0.5, cat_weight=3.0)(step)
    torch.testing.assert_close(terms["ce"], 0.5 * nn.functional.cross_entropy(logits, batch.labels))
    torch.testing.assert_close(terms["cat"], 3 * cat_loss(*maps, size=2, normalize=False))
    assert list(CATKD(spec, size=2, normalize=False, ce_weight=0.0, cat_weight=3.0)(step)) == ["cat"]
    with pytest.raises(UserError, match="size=0 must be a whole number of at least 1"):
        CATKD(spec, size=0, normalize=False, ce_weight=1.0, cat_weight=3.0)


def test_published_numbers_of_pairs():
    across = harness.configure("distiller=catkd", "teacher=resnet32x4", "student=shufflenetv1")["distiller"]
    assert (across["cat_weight"], across["size"], across["normalize"]) == (600, 4, True)
    alike = harness.configure("distiller=catkd", "teacher=resnet56", "student=resnet20")["distiller"]
    assert (alike["cat_weight"], alike["size"], alike["normalize"]) == (0.7, 2, False)
