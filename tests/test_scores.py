"""Scores against their definitions written as loops."""

import math

import pytest
import torch

from distill.scores import BINS, Scores, evaluate
from distill.types import Batch, Output


def by_loops(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor) -> dict[str, float]:
    top1 = top5 = agreement = nll = 0.0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for row, label, other in zip(logits.tolist(), labels.tolist(), teacher.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda c: -row[c])
        top1 += ranked[0] == label
        top5 += label in ranked[:5]
        agreement += ranked[0] == other
        total = sum(math.exp(z) for z in row)
        nll -= math.log(math.exp(row[label]) / total)
        confidence = math.exp(row[ranked[0]]) / total
        bins[min(int(confidence * BINS), BINS - 1)].append((confidence, ranked[0] == label))
    n = len(labels)
    ece = sum(abs(sum(c for c, _ in b) - sum(hit for _, hit in b)) for b in bins) / n
    return {
        **{"top1": 100 * top1 / n, "top5": 100 * top5 / n, "ece": 100 * ece},
        **{"nll": nll / n, "agreement": 100 * agreement / n},
    }


def test_equal_the_definitions_over_unequal_batches() -> None:
    torch.manual_seed(0)
    logits, labels, teacher = 3 * torch.randn(103, 12), torch.randint(12, (103,)), torch.randint(12, (103,))
    scores = Scores(12)
    for part in (slice(0, 50), slice(50, 50), slice(50, 103)):
        scores.update(logits[part], labels[part], teacher[part])
    found, expected = scores.compute(), by_loops(logits, labels, teacher)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_two_classes_and_reset() -> None:
    scores = Scores(2)
    scores.update(torch.tensor([[2.0, 1.0]]), torch.tensor([1]), None)
    assert scores.compute()["top1"] == 0
    assert scores.compute()["top5"] == 100
    scores.reset()
    scores.update(torch.tensor([[2.0, 1.0]]), torch.tensor([0]), None)
    assert scores.compute()["top1"] == 100


class Constant(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> Output:
        return Output(logits=images.flatten(1)[:, :3])


def test_evaluate_orders_predictions_by_index() -> None:
    images = torch.eye(3).repeat(2, 1).view(6, 3, 1, 1)
    labels = torch.tensor([0, 1, 2, 0, 1, 1])
    order = [torch.tensor([4, 0, 5]), torch.tensor([2, 1, 3])]
    batches = [Batch(images[i], labels[i], index=i) for i in order]
    found = evaluate(Constant(), batches, num_classes=3, device=torch.device("cpu"), precision="32-true")
    assert found.predictions.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.labels.tolist() == labels.tolist()
    assert found.scores["top1"] == pytest.approx(100 * 5 / 6)
    assert "agreement" not in found.scores
