"""Training through torch.compile: where it pays, what it may change, and what happens when it fails."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import harness
from distill import compiled

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RUN = (*harness.SMALL, *harness.RANDOM_TEACHER, "distiller=kd", "recipe.lr=0.01", "trainer.compile=true")


def test_auto_means_long_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: name)
    assert compiled.pays("auto", CUDA, steps=compiled.WORTH_STEPS)
    assert not compiled.pays("auto", CUDA, steps=compiled.WORTH_STEPS - 1)
    assert not compiled.pays("auto", CPU, steps=10**6)
    assert compiled.pays(True, CPU, steps=1)
    assert not compiled.pays(False, CUDA, steps=10**6)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert not compiled.pays("auto", CUDA, steps=10**6)


def test_a_compiler_that_fails_leaves_the_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails_when_called(function: object, **_: object) -> object:
        def call(*_: object) -> None:
            raise RuntimeError("no compiler here")

        return call

    harness.execute(harness.configure(*RUN, "trainer.compile=false"), tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", fails_when_called)
    with caplog.at_level("WARNING", logger="distill"):
        harness.execute(harness.configure(*RUN), tmp_path / "failed")
    assert "the student is not compiled: no compiler here" in caplog.text
    one, other = harness.state(tmp_path / "plain"), harness.state(tmp_path / "failed")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
def test_a_compiled_run_takes_the_same_steps_and_resumes_with_equal_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = harness.configure(*RUN, "checkpoint.steps=2")
    rows = []
    compile_ = torch.compile

    def counting(function: object, **options: object) -> object:
        quick = compile_(function, **options)

        def call(*args: object) -> object:
            rows.append(max(len(a) for a in args if isinstance(a, torch.Tensor)))
            return quick(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(compiled.torch, "compile", counting)
        harness.execute(config, tmp_path / "whole")
    assert rows.count(256) >= 12  # 1,437 images: five whole batches an epoch and one of 157
    harness.execute(config, tmp_path / "cut", kill_at=9)
    harness.execute(config, tmp_path / "cut")
    one, other = harness.state(tmp_path / "whole"), harness.state(tmp_path / "cut")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []

    harness.execute(harness.configure(*RUN, "trainer.compile=false"), tmp_path / "plain")
    a, b = (load_file(tmp_path / run / "student.safetensors") for run in ("plain", "whole"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-3, atol=2e-4)
