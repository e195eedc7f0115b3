"""ReviewKD against its formulas written as loops, published sizes, and every kind of pair."""

import pytest
import torch
from torch import nn

import harness
import small_pairs
from distill.distillers.reviewkd import Fusion, ReviewKD, hcl_loss
from distill.errors import UserError
from distill.types import Output, Shapes, Spec

NODE = {**harness.yaml(harness.CONF / "distiller/reviewkd.yaml"), "warmup_epochs": 20}
NUMBERS = {key: value for key, value in NODE.items() if key != "_target_"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---------------------------------------------------------------------- by loops


def mean_of(x, rows, columns):
    return sum(x[i, j] for i in rows for j in columns) / (len(rows) * len(columns))


def averaged(x, level):
    """A map's means over level x level equal fields."""
    step = len(x) // level
    return [
        mean_of(x, range(i * step, (i + 1) * step), range(j * step, (j + 1) * step))
        for i in range(level)
        for j in range(level)
    ]


def hcl_by_loops(pairs):
    total = 0
    for student, teacher in pairs:
        height = student.shape[-1]
        levels = [height, *(level for level in (4, 2, 1) if level < height)]
        weighted, weights = 0, 0
        for place, level in enumerate(levels):
            squares = []
            for s_row, t_row in zip(student, teacher, strict=True):
                for s, t in zip(s_row, t_row, strict=True):
                    squares += [(a - b) ** 2 for a, b in zip(averaged(s, level), averaged(t, level), strict=True)]
            weighted = weighted + 0.5**place * sum(squares) / len(squares)
            weights += 0.5**place
        total = total + weighted / weights
    return total


def make(sizes=(8, 4, 2, 1), rows=2, channels=2):
    shapes = [(rows, channels, size, size) for size in sizes]
    students = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return students, [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("sizes", [(8, 4, 2, 1), (4,), (1,)])
def test_value_and_gradient_equal_the_formula(sizes):
    students, teachers = make(sizes)
    fast, slow = hcl_loss(students, teachers), hcl_by_loops(list(zip(students, teachers, strict=True)))
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    for a, b in zip(*(torch.autograd.grad(x, students) for x in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)


def test_weights_of_the_pyramid():
    """Maps that differ by one everywhere: every level says 1, and so does their weighted mean."""
    assert hcl_loss([torch.ones(2, 3, 8, 8)], [torch.zeros(2, 3, 8, 8)]) == 1
    checkered = torch.ones(1, 1, 8, 8)
    checkered[..., ::2, :] = -1
    assert hcl_loss([checkered], [torch.zeros(1, 1, 8, 8)]).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


def nearest(x, size):
    rows, columns = ([i * length // new for i in range(new)] for length, new in zip(x.shape[-2:], size, strict=True))
    return x[:, :, rows][:, :, :, columns]


def normed(x, norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def test_a_fusion_equals_its_formula():
    fusion = Fusion(3, 4, 5, deepest=False).double().eval()
    for norm in (fusion.enter[1], fusion.leave[1]):
        for value in (norm.weight, norm.running_var):
            nn.init.uniform_(value, 0.5, 2)
        for value in (norm.bias, norm.running_mean):
            nn.init.normal_(value)
    x, deeper = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 4, 3, 3).double()
    passed, out = fusion(x, deeper, (8, 8))

    own = normed(torch.einsum("bihw,oi->bohw", x, fusion.enter[0].weight[:, :, 0, 0]), fusion.enter[1])
    other = nearest(deeper, (4, 4))
    both = torch.cat([own, other], dim=1)
    scores = torch.einsum("bihw,oi->bohw", both, fusion.attention.weight[:, :, 0, 0])
    shares = 1 / (1 + torch.exp(-(scores + fusion.attention.bias[:, None, None])))
    fused = nearest(own * shares[:, 0, None] + other * shares[:, 1, None], (8, 8))
    padded = torch.zeros(2, 4, 10, 10).double()
    padded[:, :, 1:9, 1:9] = fused
    expected = sum(
        torch.einsum("bihw,oi->bohw", padded[:, :, i : i + 8, j : j + 8], fusion.leave[0].weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    torch.testing.assert_close(passed, fused, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out, normed(expected, fusion.leave[1]), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- the method


def shapes(channels, sizes, pooled):
    """A stem that no one reads, and stages."""
    stages = tuple((c, size, size) for c, size in zip(channels, sizes, strict=True))
    return Shapes(100, ((16, 32, 32), *stages), stages, stages[-1], pooled)


THREE = (32, 16, 8)
NETWORKS = {
    "resnet20": shapes((16, 32, 64), THREE, 64),
    "resnet56": shapes((16, 32, 64), THREE, 64),
    "resnet8x4": shapes((64, 128, 256), THREE, 256),
    "resnet32x4": shapes((64, 128, 256), THREE, 256),
    "wrn_16_2": shapes((32, 64, 128), THREE, 128),
    "wrn_40_2": shapes((32, 64, 128), THREE, 128),
    "vgg8": shapes((128, 256, 512, 512), (16, 8, 4, 4), 512),
    "vgg13": shapes((128, 256, 512, 512), (16, 8, 4, 4), 512),
    "cifar_resnet50": shapes((256, 512, 1024, 2048), (32, 16, 8, 4), 2048),
    "mobilenetv2": shapes((12, 16, 48, 160), (16, 8, 4, 2), 1280),
    "shufflenetv2": shapes((116, 232, 464), (16, 8, 4), 1024),
}


@pytest.mark.parametrize(
    ("teacher", "student", "millions"),
    [
        ("resnet32x4", "resnet8x4", 1.81),
        ("resnet56", "resnet20", 0.114),
        ("wrn_40_2", "wrn_16_2", 0.454),
        ("resnet32x4", "shufflenetv2", 4.20),
        ("vgg13", "vgg8", 9.85),
        ("vgg13", "mobilenetv2", 9.64),
        ("cifar_resnet50", "mobilenetv2", 27.9),
    ],
)
def test_extra_parameters_are_those_of_the_public_code(teacher, student, millions):
    with torch.device("meta"):
        labels = torch.empty(8, dtype=torch.int64)
        method = ReviewKD(Spec(NETWORKS[student], NETWORKS[teacher], 100, 8, labels, 8), **NUMBERS)
    extra = sum(p.numel() for p in method.parameters()) / 1e6
    assert float(f"{extra:.3g}") == millions


def test_three_stages_teach_the_last_three_of_four_and_the_pooled_features():
    spec = Spec(NETWORKS["mobilenetv2"], NETWORKS["wrn_40_2"], 100, 8, torch.arange(8), 8)
    method = ReviewKD(spec, **NUMBERS)
    assert method.pairs == [(3, 2), (2, 1), (1, 0)]
    assert method.sizes == [(1, 1), (8, 8), (16, 16), (32, 32)]


@pytest.mark.parametrize(("maps", "read"), [("stages", 1.0), ("preacts", -1.0)])
def test_reads_the_students_maps_after_relu_or_before_and_the_teachers_before(maps, read):
    stages = ((2, 4, 4), (2, 4, 4), (2, 2, 2))
    spec = Spec(*[Shapes(7, stages, stages[1:], stages[-1], 2)] * 2, 7, 8, torch.arange(8), 8)
    method = ReviewKD(spec, **NUMBERS | {"student_maps": maps})
    seen = []
    for fusion in method.fusions:
        fusion.enter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].unique().item()))
    after, before = ([torch.full((2, *shape), value) for shape in stages] for value in (1.0, -1.0))
    output = Output(torch.zeros(2, 7), tuple(after), tuple(before[1:]), after[-1], torch.full((2, 2), 5.0))
    method.fused(output)
    assert seen == [5.0, read, read]
    assert [target.unique().item() for target in method.targets(output)] == [5.0, -1.0, -1.0]
    bare = Output(output.logits, output.stages, (), output.final, output.pooled)
    assert [target.unique().item() for target in method.targets(bare)] == [5.0, 1.0, 1.0]


def test_warms_up_from_the_first_epoch():
    method, student, teacher = small_pairs.build(NODE, "wide", "resnet")
    step = small_pairs.step_of(method, student, teacher)
    early, late, later = (
        method(type(step)(step.batch, step.student, step.teacher, epoch=epoch, step=0))["review"].item()
        for epoch in (1, 20, 30)
    )
    assert early == pytest.approx(late / 20)
    assert later == late


@pytest.mark.parametrize(("teacher", "student"), small_pairs.PAIRS)
def test_every_kind_of_pair_learns(teacher, student):
    small_pairs.assert_all_learn(NODE, teacher, student)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_under_large_maps(dtype):
    students, teachers = make()
    large = [(1e3 * s.detach()).to(dtype).requires_grad_() for s in students]
    loss = hcl_loss(large, [(1e3 * t).to(dtype) for t in teachers])
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(s.grad.isfinite().all() for s in large)


def test_the_teacher_gets_no_gradient():
    students, teachers = make()
    hcl_loss(students, [t.requires_grad_() for t in teachers]).backward()
    assert all(s.grad is not None for s in students)
    assert all(t.grad is None for t in teachers)


def test_fusions_need_channels():
    spec = Spec(NETWORKS["resnet20"], NETWORKS["resnet56"], 100, 8, torch.arange(8), 8)
    with pytest.raises(UserError, match="widest=0 must be a whole number of at least 1"):
        ReviewKD(spec, **NUMBERS | {"widest": 0})
