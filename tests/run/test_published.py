"""Published weights reach their published accuracy through the command that the README shows."""

from pathlib import Path

import pytest

import harness

PUBLISHED = {"resnet20": (68.83, 91.01), "resnet56": (72.61, 91.92)}


@pytest.mark.parametrize("name", ["resnet20", pytest.param("resnet56", marks=pytest.mark.slow)])
def test_accuracy(name: str, cifar_root: Path) -> None:
    weights = harness.public_weights(name)
    scores = harness.evaluate(f"student={name}", f"student.weights={weights}", f"data.root={cifar_root}")
    top1, top5 = PUBLISHED[name]
    assert scores["top1"] == pytest.approx(top1, abs=0.05)
    assert scores["top5"] == pytest.approx(top5, abs=0.05)
