"""The curves of short runs, as they were when somebody last looked at them: a refactoring may not move the loss.

`DISTILL_WRITE_GOLDEN=1 python -m pytest tests/run/test_golden.py` writes them anew, on purpose only.
"""

import json
import os
from pathlib import Path

import pytest
import torch

import harness

GOLDEN = harness.ROOT / "tests" / "golden"


@pytest.mark.parametrize("name", harness.METHODS)
def test_curve(name: str, tmp_path: Path) -> None:
    """Float32 and one thread; the tolerance is for other processors and library versions."""
    teacher = ("teacher=none",) if name == "none" else harness.RANDOM_TEACHER
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # a low rate: at the recipe's, rounding grows over twelve steps to more than the tolerance
        run = (*harness.SMALL, "recipe.lr=0.005", f"distiller={name}", *teacher)
        harness.execute(harness.configure(*run), tmp_path)
    finally:
        torch.set_num_threads(threads)
    header, *lines = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    curve = {
        column: [float(line[place]) for line in lines]
        for place, column in enumerate(header)
        if column.startswith("train/") and column != "train/top1"
    }
    file = GOLDEN / f"{name}.json"
    if os.environ.get("DISTILL_WRITE_GOLDEN"):
        file.write_text(json.dumps(curve, indent=2) + "\n")
    golden = json.loads(file.read_text())
    assert curve.keys() == golden.keys()
    for column, values in golden.items():
        assert curve[column] == pytest.approx(values, rel=2e-3), column
