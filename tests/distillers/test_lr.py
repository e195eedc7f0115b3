"""LR against its formulas written as loops, and what must hold for any input."""

import pytest
import torch

from distill.distillers.lr import LabelRevision, lr_losses, revised, teacher_right
from distill.types import Batch, Output, Shapes, Spec, Step

SPEC = Spec(Shapes(7), Shapes(7), num_classes=7, num_samples=6, labels=torch.arange(6), batch_size=6)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def softmax(row):
    weights = [torch.exp(z) for z in row]
    return [w / sum(weights) for w in weights]


def lr_by_loops(student, teacher, labels, eta):
    """Three means, one row and one class at a time; an empty group gives zero."""
    groups = {"right_ce": [], "right_logits": [], "wrong": []}
    for s, t, y in zip(student, teacher, labels.tolist(), strict=True):
        if t[y] == max(t):
            groups["right_ce"].append(-torch.log(softmax(s)[y]))
            groups["right_logits"] += [(a - b) ** 2 for a, b in zip(s, t, strict=True)]
        else:
            p = softmax(t)
            kept = eta / (max(p) - p[y] + 1)
            for c, (mine, theirs) in enumerate(zip(softmax(s), p, strict=True)):
                groups["wrong"].append((mine - kept * theirs - (1 - kept) * (c == y)) ** 2)
    return [sum(group) / len(group) if group else 0 * student.sum() for group in groups.values()]


def make(rows=6, classes=7, wrong=4):
    student = torch.randn(rows, classes, dtype=torch.float64, requires_grad=True)
    teacher = 2 * torch.randn(rows, classes, dtype=torch.float64)
    labels = teacher.argmax(dim=1)
    labels[:wrong] = (labels[:wrong] + torch.randint(1, classes, (min(wrong, rows),))) % classes
    return student, teacher, labels


@pytest.mark.parametrize(("rows", "wrong"), [(6, 4), (6, 0), (6, 6), (1, 0), (1, 1)])
@pytest.mark.parametrize("eta", [0.0, 0.8])
def test_values_and_gradients_equal_the_formulas(rows, wrong, eta):
    student, teacher, labels = make(rows, wrong=wrong)
    fast, slow = lr_losses(student, teacher, labels, eta=eta), lr_by_loops(student, teacher, labels, eta)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
        gradients = [torch.autograd.grad(x, student, retain_graph=True)[0] for x in (a, b)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shares", [(3, 3), (4, 2), (1, 5), (6,)])
def test_ranks_of_unequal_shares_and_groups_add_up_to_the_joined_batch(shares):
    student, teacher, labels = make()
    whole = lr_losses(student, teacher, labels, eta=0.8)
    parts = [x.split(shares) for x in (student, teacher, labels)]
    right = teacher_right(teacher, labels)
    ranks = [lr_losses(*own, eta=0.8, right=right) for own in zip(*parts, strict=True)]
    for name in whole._fields:  # a rank counts by its share of the rows, as in the training loop
        total = sum(n / 6 * getattr(losses, name) for n, losses in zip(shares, ranks, strict=True))
        torch.testing.assert_close(total, getattr(whole, name))


def test_revised_rows_are_probabilities_that_the_label_leads_and_keep_the_order_of_the_others():
    teacher = 5 * torch.randn(50, 7, dtype=torch.float64)
    labels = torch.arange(50) % 7
    target = revised(teacher, labels, eta=0.99)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(target.argmax(dim=1), labels)
    label = labels[:, None]
    before, after = (x.scatter(1, label, -1.0).argsort(dim=1) for x in (teacher.softmax(dim=1), target))
    assert torch.equal(before, after)


def test_is_zero_where_the_student_says_what_it_is_taught():
    _, teacher, labels = make()
    assert lr_losses(teacher, teacher, labels, eta=0.8).right_logits == 0
    target = revised(teacher, labels, eta=0.8)
    assert lr_losses(target.log() + 3, teacher, labels, eta=0.8).wrong.item() == pytest.approx(0, abs=1e-14)
    assert lr_losses(teacher, teacher, labels, eta=0.8).wrong > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_stay_finite_under_large_logits_and_one_class_alone(dtype):
    teacher = (1e3 * torch.randn(7, 7)).to(dtype)
    for labels in (torch.full((7,), 3), teacher.argmin(dim=1), teacher.argmax(dim=1)):
        student = (-teacher).requires_grad_()
        losses = lr_losses(student, teacher, labels, eta=0.8)
        sum(losses).backward()
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)
        assert student.grad.isfinite().all()


def test_the_method_weighs_its_terms_and_the_teacher_gets_no_gradient():
    student, teacher, labels = make()
    teacher.requires_grad_()
    step = Step(Batch(torch.empty(0), labels, torch.arange(6)), Output(student), Output(teacher), epoch=1, step=0)
    method = LabelRevision(SPEC, eta=0.8, right_ce_weight=0.5, right_logits_weight=4.0, wrong_weight=2.0)
    terms, losses = method(step), lr_losses(student, teacher, labels, eta=0.8)
    weights = dict(zip(("right_ce", "right_logits", "wrong"), (0.5, 4.0, 2.0), strict=True))
    assert terms.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(terms[name], weight * getattr(losses, name))
    sum(terms.values()).backward()
    assert teacher.grad is None
