"""LSKD against its formulas written as loops, what standardising must do to any row, and what the host is shown."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from distill.distillers import Distiller
from distill.distillers.ctkd import CTKD
from distill.distillers.dkd import DKD
from distill.distillers.kd import KD, kd_loss
from distill.distillers.lskd import LSKD, standardize
from distill.distillers.mlkd import MLKD
from distill.distillers.rld import RLD
from distill.errors import UserError
from distill.types import Batch, Output, Shapes, Spec, Step

SPEC = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=5, labels=torch.arange(5), batch_size=5)
LABELS = torch.tensor([0, 3, 3, 6, 1])
WARM = {"ce_weight": 0.5, "warmup_epochs": 4.0}
HOSTS = {
    "kd": (KD, {"temperature": 2.0, "ce_weight": 0.1, "kd_weight": 9.0}),
    "dkd": (DKD, {"temperature": 3.0, "alpha": 9.0, "beta": 18.0, **WARM}),
    "rld": (RLD, {"temperature": 2.0, "confidence_temperature": 1.5, "alpha": 9.0, "beta": 72.0, **WARM}),
    "ctkd": (
        CTKD,
        {
            **{"lowest_temperature": 2.0, "temperature_range": 20.0, "initial_theta": 1.0, "curriculum_epochs": 10.0},
            **{"ce_weight": 0.1, "kd_weight": 9.0},
        },
    ),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rows_by_loops(logits):
    """Z-scores, one class at a time."""
    rows = []
    for row in logits:
        mean = sum(row) / len(row)
        variance = sum((z - mean) ** 2 for z in row) / (len(row) - 1)
        rows.append(torch.stack([(z - mean) / (1e-7 + variance.sqrt()) for z in row]))
    return torch.stack(rows)


def make(name, **changes):
    kind, numbers = HOSTS[name]
    return LSKD(SPEC, host=kind(SPEC, **numbers), **{"raw_terms": ["ce"], **changes}).double()


def step_of(student, teacher, *, epoch=2, strong=(None, None)):
    batch = Batch(torch.empty(0), LABELS, torch.arange(5))
    return Step(batch, Output(student, strong=strong[0]), Output(teacher, strong=strong[1]), epoch, 0)


def logits():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    return (2 * student).requires_grad_(), 5 * teacher


@pytest.mark.parametrize("classes", [2, 7])
def test_rows_and_their_gradient_equal_the_formula(classes):
    rows = (3 * torch.randn(5, classes, dtype=torch.float64) + 4).requires_grad_()
    weights = torch.randn(5, classes, dtype=torch.float64)
    fast, slow = standardize(rows), rows_by_loops(rows)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad((x * weights).sum(), rows)[0] for x in (fast, slow))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_every_row_has_mean_zero_and_deviation_one_whatever_its_scale():
    rows = torch.randn(5, 7, dtype=torch.float64)
    scaled = rows * torch.logspace(-2, 3, 5)[:, None] + torch.linspace(-50, 50, 5)[:, None]
    torch.testing.assert_close(standardize(scaled), standardize(rows), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(standardize(rows).mean(1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(
        standardize(rows).square().sum(1) / 6, torch.ones(5, dtype=torch.float64), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("row", [[3.0] * 7, [1e4, -1e4, 0, 0, 0, 0, 0], [1e18] + [0.0] * 6], ids=str)
def test_equal_and_huge_logits_stay_finite(row):
    rows = torch.tensor([row, list(range(7))]).requires_grad_()
    found = standardize(rows)
    found.square().sum().backward()
    assert found.isfinite().all()
    assert rows.grad.isfinite().all()
    if len(set(row)) == 1:
        assert (found[0] == 0).all()


def test_half_precision_logits_are_standardised_in_float32():
    rows = (40 * torch.randn(5, 7)).bfloat16()
    assert torch.equal(standardize(rows), standardize(rows.float()))


@pytest.mark.parametrize("name", HOSTS)
def test_the_hosts_terms_are_those_of_standardised_logits_and_the_task_reads_raw_ones(name):
    student, teacher = logits()
    method = make(name)
    host = method.part("host")
    terms = method(step_of(student, teacher))
    expected = host(step_of(rows_by_loops(student), rows_by_loops(teacher)))
    task = -sum(row.softmax(0)[y].log() for row, y in zip(student, LABELS, strict=True)) / 5
    expected["ce"] = host.ce_weight * task
    assert list(terms) == list(expected)
    for key in expected:
        torch.testing.assert_close(terms[key], expected[key], rtol=1e-7, atol=1e-12)
        slopes = (torch.autograd.grad(t[key], student, retain_graph=True)[0] for t in (terms, expected))
        torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", HOSTS)
def test_the_scale_of_neither_network_matters_but_to_the_task(name):
    student, teacher = logits()
    method = make(name)
    one, other = method(step_of(student, teacher)), method(step_of(3 * student + 1, teacher / 4 - 2))
    assert abs(one.pop("ce") - other.pop("ce")) > 1e-3
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-7)
    zero = method(step_of(2 * teacher - 1, teacher))
    if name != "rld":  # which moves the teacher's confidence onto the label
        assert all(value.item() == pytest.approx(0, abs=1e-9) for key, value in zero.items() if key != "ce")


@pytest.mark.parametrize("name", HOSTS)
def test_one_class_only_huge_logits_and_one_row_stay_finite_and_the_teacher_gets_no_gradient(name):
    student, teacher = (1e4 * torch.randn(2, 5, 7, dtype=torch.float64)).unbind()
    student.requires_grad_()
    teacher.requires_grad_()
    step = step_of(student, teacher)
    step = replace(step, batch=replace(step.batch, labels=torch.full((5,), 3)))
    sum(make(name)(step).values()).backward()
    assert student.grad.isfinite().all()
    assert teacher.grad is None
    one = replace(
        step,
        batch=Batch(torch.empty(0), LABELS[:1], LABELS[:1]),
        student=Output(student[:1]),
        teacher=Output(teacher[:1]),
    )
    assert all(term.isfinite() for term in make(name)(one).values())


class Shows(Distiller):
    """What a host was shown, under names."""

    views = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(5, 7))

    def forward(self, step):
        step.scratch["rows"] = step.teacher.logits
        strong = step.student.strong.square().sum(), step.teacher.strong.square().sum()
        return dict(zip(("ce", "strong", "target"), (step.student.logits.square().sum(), *strong), strict=True))

    def update(self, step):
        assert torch.equal(step.scratch["rows"], step.teacher.logits)
        self.seen.copy_(step.teacher.logits)


def two_views():
    student, teacher, strong, target = torch.randn(4, 5, 7).unbind()
    return step_of(student, teacher, strong=(strong, target))


def test_the_strong_view_is_standardised_too_and_raw_terms_read_neither():
    step = two_views()
    terms = LSKD(SPEC, host=Shows(), raw_terms=["ce", "target"])(step)
    torch.testing.assert_close(terms["ce"], step.student.logits.square().sum())
    torch.testing.assert_close(terms["strong"], torch.tensor(5 * 6.0))  # of each row the squares sum to classes - 1
    torch.testing.assert_close(terms["target"], step.teacher.strong.square().sum())


def test_over_mlkd_only_the_divergence_reads_standardised_logits_of_both_views():
    """As the published numbers: "class" and "batch" are those of raw logits."""
    numbers = {"temperatures": [2.0, 3.0], "ce_weight": 0.1, "kd_weight": 9.0, "terms": "released"}
    host, step = MLKD(SPEC, **numbers), two_views()
    terms = LSKD(SPEC, host=host, raw_terms=["ce", "class", "batch"])(step)
    raw = host(step)
    views = [(step.student.logits, step.teacher.logits), (step.student.strong, step.teacher.strong)]
    weak, strong = (
        sum(kd_loss(rows_by_loops(s), rows_by_loops(t), temperature=T) for T in (2.0, 3.0)) for s, t in views
    )
    assert all(terms[name] == raw[name] for name in ("ce", "class", "batch"))
    torch.testing.assert_close(terms["instance"], 9 * (3 / 5 * weak + strong))  # three of five rows: their median too


def test_the_host_updates_its_state_with_what_it_was_shown():
    method, step = LSKD(SPEC, host=Shows(), raw_terms=["ce"]), two_views()
    method(step)
    method.update(step)
    torch.testing.assert_close(method.part("host").seen, standardize(step.teacher.logits))
    assert method.views == 2
    assert list(method.state_dict()) == ["parts.host.seen"]
    assert isinstance(method.parts, nn.ModuleDict)


def test_the_hosts_report_is_its_own():
    assert make("ctkd").report(5)["reversal"] == pytest.approx(0.5)
    assert make("kd").report(5) == {}


def test_a_raw_term_that_the_host_does_not_have():
    method = LSKD(SPEC, host=Shows(), raw_terms=["ce", "strnog"])
    with pytest.raises(
        UserError, match=r"raw_terms=\['ce', 'strnog'\]: the host has no term strnog, but ce, strong, targ"
    ):
        method(two_views())
