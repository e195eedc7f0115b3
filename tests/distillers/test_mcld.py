"""MCLD against its formulas written as loops for every option, its queue, several ranks, and hard inputs."""

import threading
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill import memory
from distill.distillers import infonce
from distill.distillers.mcld import MAX_QUEUE, MCLD, category_loss, instance_loss, sample_loss
from distill.errors import UserError
from distill.types import Batch, Output, Shapes, Spec, Step

CLASSES, SAMPLES, T = 5, 23, 0.2
LABELS = torch.arange(SAMPLES) * 7 % 3  # classes 3 and 4 have no sample
NUMBERS = {
    "temperature": T,
    "normalize": "l2",
    "queue_length": 11,
    "queue_init": "empty",
    "queue_dtype": "float32",
    "exclude_self": True,
    "target_mask": "none",
    "category_reduction": "valid",
    "category_denominator": "printed",
    "category_warmup_epochs": 0,
    "ce_weight": 0.0,
    "instance_weight": 1.0,
    "sample_weight": 0.5,
    "category_weight": 0.25,
}
DTYPES = ("float32", "bfloat16")
SPEC = Spec(Shapes(CLASSES), Shapes(CLASSES), CLASSES, SAMPLES, LABELS, batch_size=6)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def blocks_of_four_entries(monkeypatch):
    """So that a queue this short is walked over in several steps, the last one shorter."""
    monkeypatch.setattr(infonce, "NUMBERS_ON_CPU", 1)
    monkeypatch.setattr(infonce, "SHORTEST", 4)


def make(spec=SPEC, **changes):
    return MCLD(spec, **NUMBERS | changes).double()


def step_of(index, *, epoch=1, rows=(), scale=3.0, student=None, teacher=None):
    """One step on the samples `index`, with random logits in float64 unless given."""
    index = torch.as_tensor(index)
    random = lambda: scale * torch.randn(len(index), CLASSES, dtype=torch.float64)  # noqa: E731
    student = (random() if student is None else student).requires_grad_()
    teacher = random() if teacher is None else teacher
    batch = Batch(torch.empty(0), LABELS[index], index, rows=rows)
    return Step(batch, Output(student), Output(teacher), epoch, 0)


# --- the slow way: torch scalars, one product at a time -------------------------------------------------------------


def similarity(anchor, key, label, numbers):
    """One similarity over temperature, from raw rows."""
    a, k = list(anchor), list(key)
    if numbers["target_mask"] == "target_logit":
        del a[label], k[label]
    if numbers["normalize"] == "center_l2":
        a, k = ([z - sum(row) / len(row) for z in row] for row in (a, k))
    product = sum(x * y for x, y in zip(a, k, strict=True))
    if numbers["normalize"] != "none":
        product = product / (sum(x * x for x in a).sqrt() * sum(y * y for y in k).sqrt())
    return product / numbers["temperature"]


def total_of(similarities):
    return sum((torch.exp(x) for x in similarities), start=torch.zeros((), dtype=torch.float64))


def terms_by_loops(step, queue, numbers):
    """All terms by Eqs. 2-9; `queue` holds (raw teacher row, sample index)."""
    students, teachers = step.student.logits, step.teacher.logits
    labels, index = step.batch.labels.tolist(), step.batch.index.tolist()
    same_class_counts = numbers["target_mask"] != "same_class"
    everyone = range(len(labels))
    zero = students.sum() * 0
    instance, sample, category, valid = zero, zero, zero, 0
    for i in everyone:
        y = labels[i]
        near = [similarity(students[i], teachers[j], y, numbers) for j in everyone]
        negatives = [
            similarity(students[i], row, y, numbers)
            for row, j in queue
            if not (numbers["exclude_self"] and j == index[i]) and (same_class_counts or LABELS[j] != y)
        ]
        instance = instance - torch.log(torch.exp(near[i]) / total_of([near[i], *negatives]))
        rivals = [near[j] for j in everyone if j == i or same_class_counts or labels[j] != y]
        sample = sample - torch.log(torch.exp(near[i]) / total_of(rivals))

        positives = [j for j in everyone if labels[j] == y and j != i]
        others = [near[n] for n in everyone if labels[n] != y]
        if not positives or (numbers["category_denominator"] == "printed" and not others):
            continue
        valid += 1
        for p in positives:
            below = {
                "printed": others,
                "supcon": [near[j] for j in everyone if j != i],
                "infonce": [near[p], *others],
            }[numbers["category_denominator"]]
            category = category - torch.log(torch.exp(near[p]) / total_of(below)) / len(positives)
    anchors = max(valid, 1) if numbers["category_reduction"] == "valid" else len(labels)
    ramp = min(step.epoch / numbers["category_warmup_epochs"], 1) if numbers["category_warmup_epochs"] else 1
    return {
        "instance": numbers["instance_weight"] * instance / len(labels),
        "sample": numbers["sample_weight"] * sample / len(labels),
        "category": numbers["category_weight"] * ramp * category / anchors,
    }


def assert_equal_terms(step, terms, expected):
    assert list(terms) == list(expected)
    for name, term in terms.items():
        slow = expected[name]
        torch.testing.assert_close(term, slow, rtol=1e-9, atol=1e-12)
        gradients = (torch.autograd.grad(x, step.student.logits, retain_graph=True)[0] for x in (term, slow))
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


# --- pure functions -------------------------------------------------------------------------------------------------


def unit(rows):
    return torch.nn.functional.normalize(rows.double())


@pytest.mark.parametrize("rows", [1, 6])
def test_pure_functions_equal_the_formulas_on_normalised_rows(rows):
    index = list(range(rows))
    step = step_of(index, student=unit(torch.randn(rows, CLASSES)), teacher=unit(torch.randn(rows, CLASSES)))
    queue = unit(torch.randn(4, CLASSES))
    ones = {"instance_weight": 1.0, "sample_weight": 1.0, "category_weight": 1.0, "normalize": "none"}
    expected = terms_by_loops(step, [(row, -1) for row in queue], NUMBERS | ones)
    s, t = step.student.logits, step.teacher.logits
    terms = {
        "instance": instance_loss(s, t, queue, temperature=T),
        "sample": sample_loss(s, t, temperature=T),
        "category": category_loss(s, t, step.batch.labels, temperature=T),
    }
    assert_equal_terms(step, terms, expected)


def test_nothing_to_tell_apart_gives_zero():
    row, labels = unit(torch.randn(1, CLASSES)), torch.tensor([2])
    assert instance_loss(row, row, row[:0], temperature=T) == 0
    assert sample_loss(row, row, temperature=T) == 0
    assert category_loss(row, row, labels, temperature=T) == 0


def test_no_gradient_reaches_teacher_and_queue():
    s, t, queue = (unit(torch.randn(4, CLASSES)).requires_grad_() for _ in range(3))
    labels = torch.tensor([0, 0, 1, 2])
    loss = instance_loss(s, t, queue, temperature=T) + sample_loss(s, t, temperature=T)
    (loss + category_loss(s, t, labels, temperature=T)).backward()
    assert s.grad.isfinite().all()
    assert t.grad is None
    assert queue.grad is None


def test_half_precision_rows_are_compared_in_float32_also_under_autocast():
    s, t, queue = (unit(torch.randn(4, CLASSES)).bfloat16() for _ in range(3))
    labels = torch.tensor([0, 0, 1, 2])

    def losses(s, t, queue):
        pure = (instance_loss(s, t, queue, temperature=T), sample_loss(s, t, temperature=T))
        return torch.stack([*pure, category_loss(s, t, labels, temperature=T)])

    expected = losses(s.float(), t.float(), queue.float())
    assert torch.equal(losses(s, t, queue), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses(s, t, queue), expected)


def test_a_queue_in_half_precision_is_compared_in_float32():
    method, step = MCLD(SPEC, **NUMBERS).bfloat16(), step_of(range(6))
    method.update(step)
    assert torch.equal(method.queue[:6], unit(step.teacher.logits).bfloat16())
    student, teacher = step.student.logits.detach().bfloat16(), step.teacher.logits.bfloat16()
    term = method(step_of(range(6, 12), student=student, teacher=teacher))["instance"]
    assert term.dtype == torch.float32
    assert term.isfinite()


@pytest.mark.parametrize("queue_init", ["empty", "gaussian"])
def test_the_queue_kept_in_bfloat16_is_the_one_in_float32_rounded(queue_init):
    exact, rounded = (MCLD(SPEC, **NUMBERS | {"queue_dtype": x, "queue_init": queue_init}) for x in DTYPES)
    step = step_of(range(6), student=torch.randn(6, CLASSES), teacher=torch.randn(6, CLASSES))
    for method in (exact, rounded):
        method.update(step)
    assert rounded.queue.dtype == torch.bfloat16
    assert torch.equal(rounded.queue, exact.queue.bfloat16())
    exact.load_state_dict(rounded.state_dict())
    for name, term in rounded(step).items():
        assert term.dtype == torch.float32
        assert torch.equal(term, exact(step)[name])


@pytest.mark.parametrize("shape", [(6, 9), (9,), (1, 9), (6, 1)])
def test_masked_entries_are_as_if_they_were_not_there(shape):
    s, t, queue = unit(torch.randn(6, CLASSES)), unit(torch.randn(6, CLASSES)), unit(torch.randn(9, CLASSES))
    masked = torch.rand(shape) < 0.5
    loss = instance_loss(s, t, queue, temperature=T, masked=masked)
    kept = ~masked.broadcast_to(6, 9)
    alone = [instance_loss(s[i : i + 1], t[i : i + 1], queue[kept[i]], temperature=T) for i in range(6)]
    torch.testing.assert_close(loss, torch.stack(alone).mean())


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("denominator", ["printed", "supcon", "infonce"])
def test_one_class_only_is_finite_with_a_gradient_that_is_finite(denominator):
    s, t = torch.randn(2, 4, CLASSES).unbind()
    s.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):  # no NaN on the way either
        loss = category_loss(s, t, torch.full((4,), 2), temperature=T, denominator=denominator)
        loss.backward()
    assert s.grad.isfinite().all()
    assert (loss == 0) == (denominator != "supcon")  # without another class only positives can be rivals


# --- every option ---------------------------------------------------------------------------------------------------

OPTIONS = [
    *({"normalize": x} for x in ("l2", "center_l2", "none")),
    *({"target_mask": "same_class", "normalize": x} for x in ("l2", "center_l2", "none")),
    *({"target_mask": "target_logit", "normalize": x} for x in ("l2", "center_l2", "none")),
    *({"category_denominator": x, "category_reduction": y} for x in ("supcon", "infonce") for y in ("valid", "all")),
    {"category_reduction": "all"},
    {"exclude_self": False},
    {"temperature": 0.07},
    {"category_warmup_epochs": 8.0},
    {"queue_length": 4},
    {"queue_length": 6},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_step_equals_the_formulas(changes):
    """Through an empty, part-filled, full and wrapped queue that meets samples again; batches of unequal size."""
    numbers = NUMBERS | changes
    scale = 0.5 if numbers["normalize"] == "none" else 3.0  # exp() of the slow way must not overflow
    method, past = make(**changes), deque(maxlen=numbers["queue_length"])
    order = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [0, 3, 1], [6], [12, 0, 4, 5, 9], [1, 13, 14, 15]]
    for epoch, index in enumerate(order, start=1):
        step = step_of(index, epoch=epoch, scale=scale)
        assert_equal_terms(step, method(step), terms_by_loops(step, past, numbers))
        method.update(step)
        past.extend(zip(step.teacher.logits, index, strict=True))


def test_own_copy_and_same_class_make_a_difference():
    """That the oracle above can tell the options apart."""
    first, second = step_of(range(6)), step_of(range(6))
    values = {}
    for changes in ({}, {"exclude_self": False}, {"target_mask": "same_class"}, {"target_mask": "target_logit"}):
        method = make(**changes)
        method.update(first)
        values[str(changes)] = method(second)["instance"].item()
    assert len(set(values.values())) == 4


def test_target_logit_ignores_the_target():
    method, step = make(target_mask="target_logit"), step_of(range(6))
    raised = 5 * torch.nn.functional.one_hot(step.batch.labels, CLASSES)
    other = step_of(range(6), student=step.student.logits.detach() + raised, teacher=step.teacher.logits)
    for name, term in method(step).items():
        torch.testing.assert_close(method(other)[name], term)


def test_rows_that_differ_by_scale_or_with_centring_by_a_constant_are_the_same():
    step = step_of(range(6))
    student, teacher = step.student.logits.detach(), step.teacher.logits
    for normalize, moved in (("l2", (3 * student, teacher / 2)), ("center_l2", (3 * student + 4, teacher / 2 - 1))):
        method = make(normalize=normalize)
        other = step_of(range(6), student=moved[0], teacher=moved[1])
        for name, term in method(step).items():
            torch.testing.assert_close(method(other)[name], term)


def test_cross_entropy_joins_with_its_weight_and_terms_of_weight_zero_are_absent():
    step = step_of(range(6))
    assert list(make()(step)) == ["instance", "sample", "category"]
    terms = make(ce_weight=2.0)(step)
    assert list(terms) == ["ce", "instance", "sample", "category"]
    rows = zip(step.student.logits, step.batch.labels, strict=True)
    torch.testing.assert_close(terms["ce"], -2 * sum(row.softmax(0)[y].log() for row, y in rows) / 6)
    for name in ("instance", "sample", "category"):
        assert list(make(**{f"{name}_weight": 0})(step)) == [k for k in ("instance", "sample", "category") if k != name]
        assert next(iter(make(ce_weight=1.0, **{f"{name}_weight": 0.0})(step))) == "ce"


def test_without_the_instance_term_no_queue_is_kept():
    method, step = make(instance_weight=0.0), step_of(range(6))
    method.update(step)
    assert method.queue.shape == (0, CLASSES)
    assert list(method(step)) == ["sample", "category"]


@pytest.mark.parametrize(
    ("option", "valid"),
    [
        ("normalize", "l2, center_l2, none"),
        ("queue_init", "empty, gaussian"),
        ("queue_dtype", "float32, bfloat16"),
        ("target_mask", "none, same_class, target_logit"),
        ("category_reduction", "valid, all"),
        ("category_denominator", "printed, supcon, infonce"),
    ],
)
def test_an_unknown_option_names_the_valid_ones(option, valid):
    with pytest.raises(UserError, match=f"{option}='maybe'.*{valid}"):
        make(**{option: "maybe"})


def test_a_queue_without_entries_and_a_loss_without_terms_are_refused():
    with pytest.raises(UserError, match="queue_length=0"):
        make(queue_length=0)
    with pytest.raises(UserError, match="at least one"):
        make(instance_weight=0, sample_weight=0, category_weight=0)


def test_a_queue_that_no_memory_can_hold_is_refused_before_it_is_made(monkeypatch):
    with pytest.raises(
        UserError, match=r"1,000,000,000,000 x 5 .* 20,000\.0 GB.*set queue_length.*queue_dtype=bfloat16"
    ):
        make(queue_length=10**12)
    with pytest.raises(UserError, match=r"10,000\.0 GB.*set queue_length to less than [\d,]+$"):
        make(queue_length=10**12, queue_dtype="bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sizes = SimpleNamespace(total_memory=100), SimpleNamespace(total_memory=11 * CLASSES * 4 - 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", sizes.__getitem__)
    with pytest.raises(UserError, match="queue_length to less than 10 "):
        make()
    assert len(make(queue_length=10).queue) == 10


# --- the queue ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "batch", "length"),
    [(50_000, 64, 49_984), (1_281_167, 256, MAX_QUEUE), (23, 6, 18), (5, 6, 5), (6, 6, 6)],
)
def test_length_by_default_is_the_training_set_in_whole_batches(samples, batch, length):
    spec = Spec(Shapes(2), Shapes(2), 2, samples, torch.zeros(samples, dtype=torch.int64), batch)
    assert len(MCLD(spec, **NUMBERS | {"queue_length": None}).queue) == length


@pytest.mark.parametrize("length", [1, 4, 6, 7, 11])
def test_the_queue_holds_the_last_rows_first_in_first_out(length):
    method, past = make(queue_length=length), deque(maxlen=length)
    cursor = 0
    for size in (6, 3, 6, 1, 9, 2, 6):
        index = [i % SAMPLES for i in range(cursor, cursor + size)]
        step = step_of(index)
        method.update(step)
        past.extend(zip(index, unit(step.teacher.logits), strict=True))
        cursor += size
        count, position = method.count.item(), method.position.item()
        assert count == len(past) == min(cursor, length)
        assert position == cursor % length
        assert (method.queue_index == -1).sum() == length - count
        slots = [(position - count + i) % length for i in range(count)]  # oldest first
        assert method.queue_index[slots].tolist() == [i for i, _ in past]
        torch.testing.assert_close(method.queue[slots], torch.stack([row for _, row in past]))


def test_forward_writes_nothing():
    method = make()
    method.update(step_of(range(6)))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method(step_of(range(6)))
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_update_after_the_gradient_leaves_the_terms_as_they_were():
    method = make()
    method.update(step_of(range(6)))
    step = step_of(range(6, 12))
    terms = method(step)
    before = {k: v.item() for k, v in terms.items()}
    sum(terms.values()).backward()
    method.update(step)
    assert {k: v.item() for k, v in terms.items()} == before


def test_a_resumed_queue_goes_on_identically():
    steps = [step_of([(5 * n + i) % SAMPLES for i in range(5)]) for n in range(6)]
    one, other = make(), make(queue_init="gaussian")
    for step in steps[:3]:
        one.update(step)
    state = {k: v.clone() for k, v in one.state_dict().items()}
    assert sorted(state) == ["count", "position", "queue", "queue_index"]
    other.load_state_dict(state)
    for step in steps[3:]:
        assert all(torch.equal(a, b) for a, b in zip(one(step).values(), other(step).values(), strict=True))
        one.update(step)
        other.update(step)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.parametrize("normalize", ["l2", "center_l2", "none"])
@pytest.mark.parametrize("target_mask", ["none", "same_class", "target_logit"])
def test_a_gaussian_queue_is_full_of_unit_rows_that_belong_to_no_sample(normalize, target_mask):
    changes = {"normalize": normalize, "target_mask": target_mask}
    torch.manual_seed(1)
    method = make(queue_init="gaussian", **changes)
    torch.manual_seed(2)
    assert torch.equal(method.queue, make(queue_init="gaussian", **changes).queue)  # ranks start equal
    assert method.count == len(method.queue)
    assert (method.queue.norm(dim=1) <= 1 + 1e-6).all()
    step = step_of(range(6), scale=0.5)
    rows = [(row, -1) for row in method.queue]
    numbers = NUMBERS | changes
    if target_mask == "same_class":  # no label, so never of the anchor's class
        numbers |= {"target_mask": "none"}
    torch.testing.assert_close(method(step)["instance"], terms_by_loops(step, rows, numbers)["instance"])
    method.update(step)
    assert method.queue_index.tolist() == [0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -1]


class WithoutSynchronising(TorchDispatchMode):
    """Refuses what makes a GPU wait for the host: values read back, and shapes that depend on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not by_mask, name
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal"), name
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("changes", [{"target_mask": x} for x in ("none", "same_class", "target_logit")], ids=str)
def test_a_step_never_waits_for_the_device(changes):
    method, steps = make(**changes), [step_of(range(6)), step_of(range(3, 9))]
    with WithoutSynchronising():
        for step in steps:
            sum(method(step).values()).backward()
            method.update(step)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            method.queue[: method.count]


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **kwargs or {})
        for tensor in answer if isinstance(answer, tuple | list) else [answer]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return answer


@pytest.mark.parametrize("changes", [{"target_mask": x} for x in ("none", "same_class", "target_logit")], ids=str)
def test_no_tensor_of_a_step_has_a_number_for_every_row_and_entry(monkeypatch, changes):
    monkeypatch.setattr(infonce, "SHORTEST", 100)
    method, step = make(queue_length=1000, **changes), step_of([i % SAMPLES for i in range(30)])
    for _ in range(34):
        method.update(step)
    with Largest() as largest:
        sum(method(step).values()).backward()
    assert largest.numbers == 1000 * CLASSES  # the queue itself; 30 rows by 1,000 entries would be six times as many


# --- several ranks --------------------------------------------------------------------------------------------------


def on_ranks(monkeypatch, counts, work):
    """Run `work(rank)` as that many threads that gather from one another as processes would."""
    here, meeting, shares = threading.local(), threading.Barrier(len(counts), timeout=20), {}

    def gather(rows, given):
        assert given == counts
        meeting.wait()
        shares[here.rank] = rows.detach()
        meeting.wait()
        return torch.cat([shares[rank] for rank in range(len(counts))])

    monkeypatch.setattr(memory, "gather", gather)
    monkeypatch.setattr(memory, "first_row", lambda given: sum(given[: here.rank]))
    results, errors = {}, []

    def run(rank):
        here.rank = rank
        try:
            results[rank] = work(rank)
        except Exception as error:
            meeting.abort()
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(len(counts))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_mask": "same_class"},
        {"target_mask": "target_logit"},
        {"category_denominator": "supcon"},
        {"category_denominator": "infonce", "category_reduction": "all"},
    ],
    ids=str,
)
@pytest.mark.parametrize("counts", [(3, 3), (4, 2), (1, 5), (2, 3, 1)])
def test_ranks_together_equal_one_process_on_the_joined_batch(monkeypatch, counts, changes):
    # classes 0 0 1 0 1 2, then 1 0 0 0 0 2: anchors without a partner are not spread evenly over the ranks
    batches = [[0, 3, 1, 6, 4, 2], [7, 0, 9, 12, 15, 5]]
    steps = [step_of(index) for index in batches]
    single = make(ce_weight=1.0, **changes)
    ranks = [make(ce_weight=1.0, **changes) for _ in counts]
    bounds = [sum(counts[:rank]) for rank in range(len(counts) + 1)]
    for index, step in zip(batches, steps, strict=True):
        expected = single(step)
        (gradient,) = torch.autograd.grad(sum(expected.values()), step.student.logits)
        parts = []
        for rank in range(len(counts)):
            share = slice(bounds[rank], bounds[rank + 1])
            student, teacher = step.student.logits.detach()[share].clone(), step.teacher.logits[share]
            parts.append(step_of(index[share], rows=counts, student=student, teacher=teacher))

        terms = on_ranks(monkeypatch, counts, lambda rank, parts=parts: ranks[rank](parts[rank]))
        # the loop: every rank's terms times rows * world / joined rows, then the mean over ranks
        joined = {name: sum(n / 6 * part[name] for n, part in zip(counts, terms, strict=True)) for name in expected}
        for name, value in expected.items():
            torch.testing.assert_close(joined[name], value)
        gradients = torch.autograd.grad(sum(joined.values()), [part.student.logits for part in parts])
        torch.testing.assert_close(torch.cat(gradients), gradient)

        single.update(step)
        on_ranks(monkeypatch, counts, lambda rank, parts=parts: ranks[rank].update(parts[rank]))
        for method in ranks:
            for name, value in single.state_dict().items():
                torch.testing.assert_close(method.state_dict()[name], value)


# --- hard inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-4, 1e3, 1e4])
@pytest.mark.parametrize("normalize", ["l2", "center_l2", "none"])
@pytest.mark.parametrize("target_mask", ["none", "same_class", "target_logit"])
@pytest.mark.parametrize("denominator", ["printed", "supcon", "infonce"])
def test_value_and_gradient_stay_finite_in_float32(scale, normalize, target_mask, denominator):
    changes = {"normalize": normalize, "target_mask": target_mask, "category_denominator": denominator}
    method = MCLD(SPEC, **NUMBERS | changes | {"ce_weight": 1.0})
    one_hot = scale * torch.eye(CLASSES)[LABELS[:6]]
    for teacher in (scale * torch.randn(6, CLASSES), one_hot, torch.full((6, CLASSES), scale)):
        for student in (scale * torch.randn(6, CLASSES), scale * torch.eye(CLASSES)[[0, 1, 2, 3, 4, 0]]):
            step = step_of(range(6), student=student.clone(), teacher=teacher)
            terms = method(step)
            sum(terms.values()).backward()
            assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
            assert step.student.logits.grad.isfinite().all()
            if normalize != "none":
                assert all(term.abs() < 1e3 for name, term in terms.items() if name != "ce")
            method.update(step)


@pytest.mark.parametrize("target_mask", ["none", "same_class", "target_logit"])
def test_batch_of_one_and_batch_of_one_class(target_mask):
    method = make(target_mask=target_mask)
    for index in ([0], [0, 3, 6, 9], [3], [0, 3]):
        step = step_of(index)
        terms = method(step)
        sum(terms.values()).backward()
        assert terms["category"] == 0  # no partner, or no other class
        assert step.student.logits.grad.isfinite().all()
        method.update(step)


def test_float32_agrees_with_float64():
    one, other = make(), MCLD(SPEC, **NUMBERS)
    for index in (range(6), range(3, 9)):
        step = step_of(index)
        student, teacher = step.student.logits.detach().float(), step.teacher.logits.float()
        single = step_of(index, student=student, teacher=teacher)
        for name, term in one(step).items():
            assert other(single)[name].item() == pytest.approx(term.item(), rel=1e-4)
        one.update(step)
        other.update(single)
