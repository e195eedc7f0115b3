"""CRD against its published form written as loops, its negatives, banks and constants, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import harness
from distill.build import build_distiller
from distill.distillers import nce
from distill.distillers.crd import CRD, crd_loss
from distill.distillers.negatives import Negatives
from distill.errors import UserError
from distill.types import Batch, Output, Shapes, Spec, Step

CLASSES, SAMPLES, WIDE, NARROW = 4, 31, 7, 5
LABELS = torch.tensor([0, 1, 1, 3] * 8)[:SAMPLES]  # class 2 has no sample
NUMBERS = {
    "embedding_dim": 6,
    "negatives": 9,
    "temperature": 0.3,
    "momentum": 0.4,
    "ce_weight": 1.0,
    "crd_weight": 0.8,
}
SPEC = Spec(Shapes(CLASSES, pooled=NARROW), Shapes(CLASSES, pooled=WIDE), CLASSES, SAMPLES, LABELS, batch_size=6)
BATCHES = [0, 1, 3, 4, 5, 8], [4, 2, 30, 7, 10, 0], [11, 4, 1, 0, 29, 13]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(spec=SPEC, **changes):
    return CRD(spec, **NUMBERS | changes).double()


def step_of(index):
    """One step on the samples `index`, with random features in float64."""
    index = torch.as_tensor(index)
    logits = torch.randn(len(index), CLASSES, dtype=torch.float64, requires_grad=True)
    student = torch.randn(len(index), NARROW, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(len(index), WIDE, dtype=torch.float64)
    batch = Batch(torch.empty(0), LABELS[index], index)
    return Step(batch, Output(logits, pooled=student), Output(logits.detach(), pooled=teacher), epoch=1, step=0)


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


# --- the slow way: torch scalars, one product at a time -------------------------------------------------------------


def exponentials(row, bank, index, drawn, temperature):
    """exp(product / temperature) of the positive, then of each negative."""
    return [sum(a * b for a, b in zip(row, bank[j], strict=True)).div(temperature).exp() for j in [index, *drawn]]


def crd_by_loops(s, t, banks, index, negatives, temperature, z):
    """The sum of both directions as the authors' code prints it."""
    total = 0.0
    samples, count = len(banks[0]), negatives.shape[1]
    for anchors, bank, constant in ((s, banks[1], z[0]), (t, banks[0], z[1])):
        for i in range(len(anchors)):
            candidates = exponentials(anchors[i], bank, index[i].item(), negatives[i].tolist(), temperature)
            p = [e / constant for e in candidates]
            total = total - (p[0] / (p[0] + count / samples + 1e-7)).log()
            for other in p[1:]:
                total = total - (count / samples / (other + count / samples + 1e-7)).log()
    return total / len(s)


def embed_by_hand(linear, rows):
    rows = rows @ linear.weight.T + linear.bias
    return rows / rows.square().sum(dim=1, keepdim=True).sqrt()


# --- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_bank", [True, False])
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (5, 64), (4, 70), (3, 131)])
def test_loss_and_gradients_equal_the_published_form(monkeypatch, rows, count, whole_bank):
    monkeypatch.setattr(nce, "ALL_ON_CPU", 10**6 if whole_bank else 0)
    monkeypatch.setattr(nce, "ROWS_ON_CPU", 80)  # one or more anchors at a time, or a part of one's negatives
    s, t = unit(2, rows, 3).requires_grad_()
    banks, index = unit(2, 40, 3), torch.randperm(40)[:rows]
    negatives = torch.randint(40, (rows, count))
    z = torch.tensor([30.0, 55.0], dtype=torch.float64)
    found = crd_loss(s, t, *banks, index, negatives, temperature=0.2, log_z=z.log())
    slow = crd_by_loops(s, t, banks, index, negatives, 0.2, z)
    torch.testing.assert_close(found, slow, rtol=1e-9, atol=0)
    for one, other in zip(*(torch.autograd.grad(x, (s, t)) for x in (found, slow)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def test_products_that_overflow_as_published_stay_finite_and_exact():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    bank = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    s = rows.clone().requires_grad_()
    arguments = (torch.tensor([0, 0]), torch.tensor([[1, 1, 1], [2, 2, 2]]))
    found = crd_loss(s, rows, bank, bank, *arguments, temperature=1e-3, log_z=torch.zeros(2))
    found.backward()
    assert torch.isinf(torch.tensor(1000.0).exp())
    assert found.item() == pytest.approx((1000 + 3000 + math.log(2) + 3000), rel=1e-6)  # mean of two, both ways
    torch.testing.assert_close(s.grad, torch.tensor([[2000.0, 0.0], [250.0, 1500.0]]))


@pytest.mark.parametrize("whole_bank", [True, False])
def test_float32_keeps_many_small_probabilities(monkeypatch, whole_bank):
    monkeypatch.setattr(nce, "ALL_ON_CPU", 10**6 if whole_bank else 0)
    s, t = unit(2, 4, 16)
    banks, index = unit(2, 6000, 16), torch.arange(4)
    negatives = torch.randint(6000, (4, 3001))
    log_z = torch.tensor([9.0, 21.0], dtype=torch.float64)  # P beside K / N: alike, and of 1e-5
    arguments = {"temperature": 0.2}
    exact = crd_loss(s, t, *banks, index, negatives, log_z=log_z, **arguments)
    single = (x.float() for x in (s, t, *banks))
    found = crd_loss(*single, index, negatives, log_z=log_z.float(), **arguments)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=3e-6)


class Largest(TorchDispatchMode):
    """Watches how many numbers a tensor has that an operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor):
                self.numbers = max(self.numbers, made.numel())
        return result


def test_gathered_negatives_are_never_all_there_at_once(monkeypatch):
    monkeypatch.setattr(nce, "ALL_ON_CPU", 0)
    monkeypatch.setattr(nce, "ROWS_ON_CPU", 64)
    s, t = unit(2, 8, 32).requires_grad_()
    banks, negatives = unit(2, 50, 32), torch.randint(50, (8, 256))
    with Largest() as largest:
        crd_loss(s, t, *banks, torch.arange(8), negatives, temperature=1.0, log_z=torch.zeros(2)).backward()
    assert largest.numbers <= max(64 * 32, 8 * 256)  # not 8 x 256 x 32


# --- the method -----------------------------------------------------------------------------------------------------


def test_steps_with_banks_and_constants_equal_those_by_hand():
    method = make()
    banks, z = [method.student_bank.clone(), method.teacher_bank.clone()], None
    bound = math.sqrt(3 / 6)
    assert all(bank.abs().max() <= bound and bank.std() == pytest.approx(6**-0.5, rel=0.1) for bank in banks)
    for index in BATCHES:
        step = step_of(index)
        drawn = method.negatives(step.batch.index, step.batch.labels)
        terms = method(step)

        s = embed_by_hand(method.student_embedding, step.student.pooled)
        t = embed_by_hand(method.teacher_embedding, step.teacher.pooled)
        if z is None:  # N times the mean of all candidates of the first batch
            z = []
            for rows, bank in ((s, banks[1]), (t, banks[0])):
                found = [e for i, j in enumerate(index) for e in exponentials(rows[i], bank, j, drawn[i].tolist(), 0.3)]
                z.append((sum(found) / len(found) * SAMPLES).detach())
        slow = 0.8 * crd_by_loops(s, t, banks, step.batch.index, drawn, 0.3, z)
        torch.testing.assert_close(terms["crd"], slow, rtol=1e-9, atol=0)
        learnt = (step.student.pooled, *method.parameters())
        for one, other in zip(*(torch.autograd.grad(x, learnt) for x in (terms["crd"], slow)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-11)
            assert one.abs().sum() > 0

        method.update(step)
        for bank, rows in zip(banks, (s, t), strict=True):
            for i, j in enumerate(index):
                moved = 0.4 * bank[j] + 0.6 * rows[i].detach()
                bank[j] = moved / moved.square().sum().sqrt()
        torch.testing.assert_close(method.student_bank, banks[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(method.teacher_bank, banks[1], rtol=1e-12, atol=0)
        torch.testing.assert_close(method.log_z, torch.stack(z).log(), rtol=1e-12, atol=0)


def test_a_method_taken_up_again_goes_on_with_the_same_constants_banks_and_negatives():
    steps, method = [step_of(index) for index in BATCHES], make()
    for step in steps[:2]:
        method(step)
        method.update(step)
    torch.manual_seed(9)
    resumed = make()
    resumed.load_state_dict(method.state_dict())
    one, other = method(steps[2]), resumed(steps[2])
    assert all(torch.equal(one[name], other[name]) for name in one)


class WithoutSynchronising(TorchDispatchMode):
    """Refuses to read a value back from the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "bincount")
        return function(*args, **kwargs or {})


def test_once_the_constants_are_known_a_step_waits_for_nothing():
    steps, method = [step_of(index) for index in BATCHES], make()
    method(steps[0])
    method.update(steps[0])
    method(steps[1])
    method.update(steps[1])
    with WithoutSynchronising():
        sum(method(steps[2]).values()).backward()
        method.update(steps[2])
        with pytest.raises(AssertionError):
            bool(method.log_z.isfinite().all())


def test_float32_under_mixed_precision():
    method, step = CRD(SPEC, **NUMBERS), step_of(BATCHES[0])
    rounded = [answer.pooled.detach().bfloat16() for answer in (step.student, step.teacher)]

    def crd(change):
        student, teacher = (change(x) for x in rounded)
        return method(
            replace(
                step,
                student=Output(step.student.logits, pooled=student),
                teacher=Output(step.teacher.logits, pooled=teacher),
            )
        )["crd"]

    plain = crd(torch.Tensor.float)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = crd(torch.Tensor.clone)
    assert mixed.dtype == torch.float32
    assert mixed.item() == plain.item()


def test_with_kd_by_a_sum_as_in_the_paper():
    node = harness.configure("distiller=sum", "+distiller@distiller.terms.crd=crd", "student=resnet8")["distiller"]
    method = build_distiller(node, SPEC, seed=0).double()
    step = step_of(BATCHES[0])
    assert method.needs == "features"
    terms = method(step)
    assert list(terms) == ["ce", "kd.kd", "crd.crd"]
    alone = build_distiller(node["terms"]["crd"], SPEC, seed=0).double()
    assert alone.crd_weight == 0.8
    assert terms["crd.crd"] == alone(step)["crd"]
    torch.testing.assert_close(terms["ce"], torch.nn.functional.cross_entropy(step.student.logits, step.batch.labels))
    method.update(step)
    assert method.part("crd").log_z.isfinite().all()


# --- negatives ------------------------------------------------------------------------------------------------------


def drawer(labels, count, draws=0):
    found = Negatives(labels, num_classes=int(labels.max()) + 1, count=count)
    found.draws.fill_(draws)
    return found


def classes_of(sizes):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels))]


@pytest.mark.parametrize("sizes", [[1, 1], [5, 1, 3], [12, 9, 30, 1, 8], [17, 0, 60]])
def test_negatives_are_distinct_and_of_other_classes_for_every_class_and_count(sizes):
    labels = classes_of(sizes)
    index = torch.arange(len(labels))
    for count in range(1, len(labels) + 3):
        drawn = drawer(labels, count, draws=count)(index, labels)
        assert drawn.shape == (len(labels), count)
        for i, row in enumerate(drawn.tolist()):
            others = (labels != labels[i]).sum().item()
            assert all(labels[j] != labels[i] for j in row)
            # all of a small pool are taken equally often, within one
            assert len(set(row)) == min(count, others)
            assert max(map(row.count, row)) == -(-count // others)


def test_negatives_are_uniform_alone_in_number_per_class_and_in_company():
    sizes, count, anchors, batches = [37, 25, 61, 83, 40, 5], 60, 25, 300
    labels = classes_of(sizes)
    own = labels[(labels == 1).nonzero()[0]]
    index = (labels == own).nonzero()[:anchors, 0]
    pool, draws = int((labels != own).sum()), anchors * batches
    taken, together, third, per_class = torch.zeros(len(labels)), 0.0, torch.zeros(len(labels)), []
    drawn_from = drawer(labels, count)
    for _ in range(batches):
        drawn = drawn_from(index, labels[index])
        drawn_from.advance()
        members = torch.zeros(anchors, len(labels)).scatter_(1, drawn, 1.0)
        taken += members.sum(dim=0)
        together += (members[1:] * members[:-1]).sum().item()
        third += drawn[:, 2].bincount(minlength=len(labels))
        per_class.append(torch.stack([members[:, labels == c].sum(dim=1) for c in range(len(sizes))], dim=1))
    others, share = labels != own, count / pool
    free = pool - 1

    # how often each sample is taken, over all negatives (of a sample of the pool: less than binomial), and as the third
    for counts, p, shrink in ((taken, share, 1 - share), (third, 1 / pool, 1.0)):
        expected = draws * p
        chi = ((counts[others] - expected) ** 2 / expected).sum().item() / shrink
        assert abs(chi - free) < 4 * math.sqrt(2 * free)

    # how many are of one class: mean and variance of the hypergeometric distribution
    numbers = torch.cat(per_class)
    for c, size in enumerate(sizes):
        if c == own:
            continue
        variance = count * size / pool * (1 - size / pool) * (pool - count) / (pool - 1)
        assert numbers[:, c].mean().item() == pytest.approx(share * size, abs=4 * math.sqrt(variance / draws))
        assert numbers[:, c].var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / draws))

    # how many two anchors share
    pairs = (anchors - 1) * batches
    variance = count * share * (1 - share) * (pool - count) / (pool - 1)
    assert together / pairs == pytest.approx(count * share, abs=4 * math.sqrt(variance / pairs))


def test_what_is_drawn_depends_on_seed_step_and_sample_not_on_the_batch():
    labels = classes_of([30, 30, 30])
    draw, index = drawer(labels, 12), torch.randperm(90)[:20]
    whole = draw(index, labels[index])
    assert torch.equal(whole, draw(index, labels[index]))
    # as ranks would, each with its own rows
    shares = [draw(part, labels[part]) for part in index.split([3, 11, 6])]
    assert torch.equal(whole, torch.cat(shares))
    assert len(set(map(tuple, whole.tolist()))) == 20
    draw.advance()
    assert not (draw(index, labels[index]) == whole).all(dim=1).any()
    other = drawer(labels, 12)
    assert other.seed != draw.seed
    assert not (other(index, labels[index]) == whole).all(dim=1).any()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "changes", "expected"),
    [
        (replace(SPEC, labels=torch.ones_like(LABELS)), {}, "^all 31 training samples are of one class"),
        (SPEC, {"negatives": 0}, "^negatives=0 leaves nothing to contrast with: give at least 1"),
        (replace(SPEC, student=Shapes(CLASSES)), {}, "pooled features, which this student does not show"),
        (replace(SPEC, teacher=Shapes(CLASSES)), {}, "pooled features, which this teacher does not show"),
        (SPEC, {"embedding_dim": 10**13}, r"^CRD's two banks of 31 x 10,000,000,000,000 .* 2,480,000.00 GB, more than"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_allocated(spec, changes, expected):
    with pytest.raises(UserError, match=expected):
        make(spec, **changes)


def test_the_memory_is_stated_before_it_is_taken(caplog, monkeypatch):
    taken = []
    monkeypatch.setattr(CRD, "register_buffer", lambda *_: taken.append(list(caplog.messages)))
    with caplog.at_level("INFO", logger="distill"):
        CRD(replace(SPEC, num_samples=1_000_000), **NUMBERS | {"embedding_dim": 8})
    assert taken[0] == ["CRD's two banks of 1,000,000 x 8 numbers take 0.06 GB, in memory and in each checkpoint"]
