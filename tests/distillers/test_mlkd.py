"""MLKD against its formulas written as loops, what the released code sums, ranks, and the numbers of its pairs."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from distill import memory
from distill.distillers.mlkd import MLKD, batch_correlation_loss, class_correlation_loss, kept_shares
from distill.errors import UserError
from distill.models.network import Network
from distill.types import Batch, Output, Shapes, Spec, Step
from harness import configure

TEMPERATURES = [4.0, 3.0, 5.0, 2.0, 6.0]
NUMBERS = {"temperatures": TEMPERATURES, "ce_weight": 0.1, "kd_weight": 0.9, "terms": "released"}
SPEC = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=6, labels=torch.arange(6), batch_size=6)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---------------------------------------------------------------------- by loops


def softmax(row, temperature):
    weights = [torch.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def kl_by_loops(student, teacher, temperature):
    total = 0
    for s, t in zip(student, teacher, strict=True):
        for q, p in zip(softmax(s, temperature), softmax(t, temperature), strict=True):
            total = total + p * torch.log(p / q)
    return temperature**2 * total / len(student)


def class_by_loops(student, teacher, temperature):
    q, p = ([softmax(row, temperature) for row in rows] for rows in (student, teacher))
    classes, total = range(len(q[0])), 0
    for a in classes:
        for b in classes:
            total = total + (sum(row[a] * row[b] for row in p) - sum(row[a] * row[b] for row in q)) ** 2
    return total / len(classes)


def batch_by_loops(student, teacher, temperature):
    q, p = ([softmax(row, temperature) for row in rows] for rows in (student, teacher))
    images, total = range(len(q)), 0
    for i in images:
        for j in images:
            theirs, own = (sum(a * b for a, b in zip(r[i], r[j], strict=True)) for r in (p, q))
            total = total + (theirs - own) ** 2
    return total / len(images)


def share_by_loops(values):
    """The middle one, or the mean of both: what numpy's percentile gives."""
    ordered = sorted(values)
    median = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
    return sum(value <= median for value in values) / len(values)


def shares_by_loops(teacher):
    rows = [[p.item() for p in softmax(row, 1)] for row in teacher]
    return share_by_loops([max(row) for row in rows]), share_by_loops([sum(c) for c in zip(*rows, strict=True)])


def cross_entropy_by_loops(student, labels):
    return sum(-torch.log(softmax(s, 1)[y]) for s, y in zip(student, labels.tolist(), strict=True)) / len(student)


def released_by_loops(weak, strong, temperatures):
    of_rows, of_classes = shares_by_loops(weak[1])
    instance = 0
    for place, temperature in enumerate(temperatures):
        instance = instance + of_rows * kl_by_loops(*weak, temperature)
        instance = instance + kl_by_loops(*(strong if place < 3 else weak), temperature)
    return {
        "instance": instance,
        "class": of_classes * sum(class_by_loops(*weak, temperature) for temperature in temperatures),
        "batch": of_rows * sum(batch_by_loops(*weak, temperature) for temperature in temperatures),
    }


def paper_by_loops(weak, strong, temperatures):
    everything = [(*view, temperature) for view in (weak, strong) for temperature in temperatures]
    return {
        "instance": sum(kl_by_loops(*one) for one in everything),
        "class": sum(class_by_loops(*one) for one in everything),
        "batch": sum(batch_by_loops(*one) for one in everything),
    }


def make(rows=6, classes=7):
    """Logits of student and teacher for the weak and for the strong view, and labels."""
    students = [torch.randn(rows, classes, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    teachers = [3 * torch.randn(rows, classes, dtype=torch.float64) for _ in range(2)]
    return *zip(students, teachers, strict=True), torch.randint(classes, (rows,))


def step_of(weak, strong, labels, rows=()):
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), rows=rows)
    student, teacher = (Output(w, strong=s) for w, s in zip(weak, strong, strict=True))
    return Step(batch, student, teacher, epoch=1, step=0)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(
    ("loss", "by_loops"), [(class_correlation_loss, class_by_loops), (batch_correlation_loss, batch_by_loops)]
)
def test_value_and_gradient_of_the_correlations_equal_the_formula(loss, by_loops, rows):
    (student, teacher), _, _ = make(rows)
    fast, slow = loss(student, teacher, temperature=2.5), by_loops(student, teacher, 2.5)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (fast, slow)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 5, 6])
@pytest.mark.parametrize("temperatures", [TEMPERATURES, [2.0, 3.0]])
@pytest.mark.parametrize(("terms", "by_loops"), [("released", released_by_loops), ("paper", paper_by_loops)])
def test_value_and_gradient_of_every_term_equal_the_formula(terms, by_loops, temperatures, rows):
    weak, strong, labels = make(rows)
    found = MLKD(SPEC, **NUMBERS | {"terms": terms, "temperatures": temperatures})(step_of(weak, strong, labels))
    task = sum(cross_entropy_by_loops(student, labels) for student, _ in (weak, strong))
    weighted = {name: 0.9 * term for name, term in by_loops(weak, strong, temperatures).items()}
    expected = {"ce": 0.1 * task} | weighted
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-13)
        for student, _ in (weak, strong):
            a, b = (
                torch.autograd.grad(x[name], student, retain_graph=True, allow_unused=True)[0]
                for x in (found, expected)
            )
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- what must hold


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 64])
def test_masks_keep_a_half_or_a_little_more(rows):
    teacher = 3 * torch.randn(rows, 100)
    of_rows, of_classes = kept_shares(teacher)
    assert of_rows == pytest.approx((rows + 1) // 2 / rows)
    assert of_classes == 0.5
    assert [s.item() for s in kept_shares(teacher)] == pytest.approx(shares_by_loops(teacher.double()))


def test_masks_keep_all_of_what_the_teacher_is_equally_sure_of():
    certain = 1e3 * torch.eye(6)
    assert [share.item() for share in kept_shares(certain)] == [1, 1]


def test_a_student_that_agrees_has_nothing_to_learn_but_the_task():
    weak, strong, labels = make()
    agreeing = [(teacher.clone().requires_grad_(), teacher) for _, teacher in (weak, strong)]
    for terms in ("released", "paper"):
        found = MLKD(SPEC, **NUMBERS | {"terms": terms})(step_of(*agreeing, labels))
        assert found["ce"] > 0
        assert all(abs(found[name]) < 1e-12 for name in ("instance", "class", "batch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("terms", ["released", "paper"])
@pytest.mark.parametrize("rows", [1, 7])
def test_value_and_gradient_stay_finite_under_large_logits_and_one_class(rows, terms, dtype):
    method = MLKD(SPEC, **NUMBERS | {"terms": terms})
    teachers = (1e3 * torch.randn(2, rows, 7)).to(dtype)
    for labels in (torch.zeros(rows, dtype=torch.int64), teachers[0].argmin(dim=1)):
        for student in (-teachers, teachers.flip(2), torch.zeros_like(teachers)):
            views = [s.clone().requires_grad_() for s in student]
            found = method(step_of(*zip(views, teachers, strict=True), labels))
            sum(found.values()).backward()
            assert all(term.isfinite() and term.dtype == torch.float32 for term in found.values())
            assert all(view.grad.isfinite().all() for view in views)


def test_autocast_does_not_round_the_correlations():
    student, teacher = (20 * torch.randn(2, 5, 7)).unbind()
    for loss in (class_correlation_loss, batch_correlation_loss):
        with torch.autocast("cpu", torch.bfloat16):
            rounded = loss(student, teacher, temperature=4.0)
        assert torch.equal(rounded, loss(student, teacher, temperature=4.0))


def test_the_teacher_gets_no_gradient():
    weak, strong, labels = make()
    for _, teacher in (weak, strong):
        teacher.requires_grad_()
    for terms in ("released", "paper"):
        sum(MLKD(SPEC, **NUMBERS | {"terms": terms})(step_of(weak, strong, labels)).values()).backward()
    assert all(student.grad is not None and teacher.grad is None for student, teacher in (weak, strong))


@pytest.mark.parametrize("temperatures", [[], [4.0, 0.0], [-1.0]])
def test_temperatures_must_be_some_and_positive(temperatures):
    with pytest.raises(UserError, match="at least one positive number"):
        MLKD(SPEC, **NUMBERS | {"temperatures": temperatures})


# ---------------------------------------------------------------------- two views


class Tiny(Network):
    """One convolution with BatchNorm; notes what it is asked."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 7)
        self.asked = []

    @property
    def classifier(self):
        return self.head

    def answer(self, x):
        self.asked.append((x, torch.is_grad_enabled()))
        return Output(self.classify(self.norm(self.convolution(x)).mean((2, 3))))


def observed():
    student, teacher = Tiny(), Tiny().eval()
    batch = Batch(torch.rand(5, 3, 8, 8), torch.arange(5), torch.arange(5), strong=torch.rand(5, 3, 8, 8))
    return student, teacher, batch, MLKD(SPEC, **NUMBERS).observe(student, teacher, batch)


def test_both_networks_answer_both_views_the_student_in_two_passes():
    student, teacher, batch, (answer, target) = observed()
    for network, grad in ((student, True), (teacher, False)):
        (weak, with_weak), (strong, with_strong) = network.asked
        assert torch.equal(weak, batch.images)
        assert torch.equal(strong, batch.strong)
        assert with_weak == with_strong == grad
    assert student.norm.num_batches_tracked == 2
    with torch.no_grad():
        assert torch.equal(answer.logits, student(batch.images).logits)
        assert torch.equal(answer.strong, student(batch.strong).logits)
        assert torch.equal(target.logits, teacher(batch.images).logits)
        assert torch.equal(target.strong, teacher(batch.strong).logits)
    assert answer.strong.requires_grad
    assert not target.strong.requires_grad


def test_the_teachers_answer_to_the_weak_view_may_be_a_kept_one():
    student, teacher, batch, _ = observed()
    kept = Output(torch.zeros(5, 7))
    teacher.ask = lambda _: kept
    _, target = MLKD(SPEC, **NUMBERS).observe(student, teacher, batch)
    assert target.logits is kept.logits
    assert torch.equal(target.strong, teacher(batch.strong).logits)


def test_a_data_set_without_strong_views_is_refused():
    student, teacher, batch, _ = observed()
    with pytest.raises(UserError, match="strongly augmented view"):
        MLKD(SPEC, **NUMBERS).observe(student, teacher, replace(batch, strong=None))


# ---------------------------------------------------------------------- ranks


@pytest.mark.parametrize("terms", ["released", "paper"])
def test_ranks_together_hold_the_gradient_of_the_joined_batch(terms, monkeypatch):
    """The training loop multiplies a rank's loss by its share of the rows, and sums over the ranks."""
    weak, strong, labels = make(7)
    method, rows = MLKD(SPEC, **NUMBERS | {"terms": terms}), (4, 3)
    whole = method(step_of(weak, strong, labels))
    expected = torch.autograd.grad(sum(whole.values()), [weak[0], strong[0]])

    everything = [tensor.detach() for view in (weak, strong) for tensor in view]
    found = [torch.zeros_like(gradient) for gradient in expected]
    means = dict.fromkeys(whole, 0.0)
    for first, own in ((0, 4), (4, 3)):
        mine = slice(first, first + own)

        def gather(part, _, mine=mine):
            return next(tensor for tensor in everything if torch.equal(tensor[mine], part))

        monkeypatch.setattr(memory, "gather", gather)
        monkeypatch.setattr(memory, "first_row", lambda _, first=first: first)
        views = [(s.detach()[mine].requires_grad_(), t[mine]) for s, t in (weak, strong)]
        parts = method(step_of(*views, labels[mine], rows))
        gradients = torch.autograd.grad(sum(parts.values()) * own / 7, [s for s, _ in views])
        for total, gradient in zip(found, gradients, strict=True):
            total[mine] += gradient
        for name, value in parts.items():
            means[name] += value.item() * own / 7
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert means == pytest.approx({name: value.item() for name, value in whole.items()}, rel=1e-10)


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("teacher", "student", "rate"),
    [
        ("resnet32x4", "resnet8x4", 0.025),
        ("wrn_40_2", "mobilenetv2", 0.005),  # a pair wins over the rule for light students
        ("resnet32x4", "shufflenetv2", 0.01),  # which alone holds here
    ],
)
def test_pairs_have_their_published_rates(teacher, student, rate):
    config = configure("distiller=mlkd", f"teacher={teacher}", f"student={student}")
    assert config["recipe"]["lr"] == rate
    assert config["distiller"]["temperatures"] == TEMPERATURES


def test_other_methods_keep_their_rate():
    assert configure("distiller=kd", "teacher=resnet32x4", "student=resnet8x4")["recipe"]["lr"] == 0.05


def test_the_published_length_keeps_the_milestones():
    recipe = configure("experiment=mlkd_480")["recipe"]
    assert (recipe["epochs"], recipe["schedule"]["milestones"]) == (480, [150, 180, 210])
    assert configure("experiment=mlkd_480")["names"]["distiller"] == "mlkd"
