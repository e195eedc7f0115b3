"""The grid's script: cells are filled once, and a hole in it is seen."""

import json

import pytest
from torch import nn

import harness
from distill.bench import grid
from distill.distillers.kd import KD
from distill.errors import UserError

PAIR = ("resnet56", "resnet20")


@pytest.fixture(scope="module")
def script():
    return harness.script("grid")


@pytest.fixture
def run(script, tmp_path):
    def run(*words):
        status = script.main(["--rows", "4", "--steps", "3", "--output", str(tmp_path), *words])
        return status, grid.from_plain(json.loads((tmp_path / "grid.json").read_text())["cells"])

    return run


def test_fills_what_is_lacking_and_keeps_what_is_there(run, tmp_path, capsys):
    words = ("--pairs", "-".join(PAIR), "--append", "--methods")
    status, (first,) = run(*words, "crd")
    assert (status, first.method, first.trouble, first.extra) == (0, "crd", "", 16_640)
    assert len(first.milliseconds) == 3
    status, cells = run(*words, "kd,crd")
    assert status == 0
    assert cells[0] == first
    assert [cell.method for cell in cells] == ["crd", "kd"]
    text = (tmp_path / "grid.md").read_text()
    assert capsys.readouterr().out.endswith(text)
    assert text.startswith("Batch 4, float32, ")
    assert "\n2 of 2 pass.\n" in text
    assert "| method | R56 → R20 |" in text
    assert text.rstrip().endswith("| crd | 16,640 |")
    with pytest.raises(UserError, match="was made with rows 4"):
        run(*words, "kd", "--rows", "8")


def test_what_does_not_pass_is_named_and_the_rest_goes_on(script, run, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("sizes\n differ")

    monkeypatch.setattr(grid, "steps", broken)
    status, cells = run("--pairs", "-".join(PAIR), "--methods", "kd,dkd")
    assert status == 1
    assert {cell.trouble for cell in cells} == {"RuntimeError: sizes differ"}
    text = (tmp_path / "grid.md").read_text()
    assert "\n0 of 2 pass.\n- dkd, resnet56 → resnet20: RuntimeError: sizes differ\n" in text
    assert "| kd | ✗ |" in text
    for words, said in ((("--methods", "none,kdd"), "no method kdd: choose of at,"), (("--pairs", "a-b"), "pair a-b")):
        with pytest.raises(UserError, match=said):
            run(*words)


class Careless(KD):
    """Leaves a parameter out, has an infinite term, and trains its teacher's statistics."""

    def __init__(self, spec, **numbers):
        super().__init__(spec, **numbers)
        self.unused = nn.Linear(2, 2)

    def observe(self, student, teacher, batch):
        for module in teacher.modules():
            module.training = True
        return super().observe(student, teacher, batch)

    def forward(self, step):
        return super().forward(step) | {"far": step.student.logits.sum() / 0}


def test_a_cell_sees_what_is_wrong():
    node = {"_target_": f"{__name__}.Careless", "temperature": 4.0, "ce_weight": 1.0, "kd_weight": 1.0}
    grid.network.cache_clear()
    found = grid.steps("careless", node, PAIR, rows=4, samples=100, count_of=2).trouble
    grid.network.cache_clear()
    assert "far is " in found
    assert "distiller.unused.weight has no gradient" in found
    assert "the teacher's bn1.running_mean has changed" in found
    assert "the gradient of student.conv1.weight is not finite" in found
