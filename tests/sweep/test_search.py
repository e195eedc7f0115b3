"""A search for a number: on held-out images, stopped and repeated, ending as one that was not stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import harness
from command_line import Answer, assert_one_sentence, carried_out
from distill.run import train
from distill.sweep.search import Study

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the packages of distill[sweep]")

SMALL = (*harness.SMALL, *harness.RANDOM_TEACHER, "recipe.epochs=1", "data.holdout=200")
SEARCH = ("experiment=search_temperature", "sweep.estimate=0", "hydra.sweep.dir=search")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`python src/train.py -m ...` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def line(*words: str) -> Answer:
        return carried_out(monkeypatch, capsys, "-m", *words)

    return line


def study(folder: Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((folder / "search/study.json").read_text())["trials"]
    return trials


def test_stopped_and_repeated_it_ends_as_one_that_was_not(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = (*SEARCH, *SMALL, "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.n_startup_trials=1")
    answer = call(*two)
    assert answer.code == 0, answer.error
    whole = study(tmp_path)
    assert len({trial["params"]["distiller.temperature"] for trial in whole}) == 2
    best = max(whole, key=lambda trial: trial["value"])
    assert f"distiller.temperature={best['params']['distiller.temperature']} with {best['value']:.2f}" in answer.out
    found = [json.loads(path.read_text()) for path in (tmp_path / "search").rglob("result.json")]
    assert {result["evaluated_on"] for result in found} == {"holdout"}
    assert not any("test" in result for result in found)
    assert {result["last"]["top1"] for result in found} == {trial["value"] for trial in whole}
    for trial in whole:
        said = f"distiller.temperature={trial['params']['distiller.temperature']}"
        assert any(said in result["variant"].split(" ") for result in found)

    assert call(*two).code == 0
    assert study(tmp_path) == whole

    shutil.rmtree(tmp_path / "search")
    build, runs = train._trainer, []

    def with_killer(*args: Any) -> Any:
        trainer = build(*args)
        runs.append(trainer)
        if len(runs) == 2:
            trainer.callbacks.insert(0, harness.KillAt(3))
        return trainer

    monkeypatch.setattr(train, "_trainer", with_killer)
    with pytest.raises(harness.Killed):
        call(*two, "checkpoint.steps=2")
    assert [trial["value"] is None for trial in study(tmp_path)] == [False, True]
    answer = call(*two, "checkpoint.steps=2")
    assert "1 of 2 trials are there" in answer.out
    assert "going on from" in answer.out
    assert study(tmp_path) == whole
    assert len(runs) == 3


def test_another_space_is_another_search(call: Any, tmp_path: Path) -> None:
    space = {"distiller.temperature": "interval(1,2)"}
    (tmp_path / "search").mkdir()
    Study(tmp_path / "search/study.json", space, "maximize", [{"params": {}, "value": 1.0}]).save()
    answer = call(*SEARCH, *SMALL)
    assert_one_sentence(answer)
    assert "is of another search (maximize over distiller.temperature=interval(1,2))" in answer.error
    answer = call(*SEARCH, *SMALL, "distiller.temperature=interval(1,2)", "hydra.sweeper.n_trials=1")
    assert "1 of 1 trials are there" in answer.out


@pytest.mark.parametrize("words", [SEARCH, ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=1")])
def test_the_test_set_is_never_searched_on(call: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    answer = call(*words, *SMALL, "data.holdout=0", "distiller=mcld", "distiller.temperature=interval(.1,1)")
    assert answer.code == 1
    assert "A search would be judged on the test set: keep a part of the training set" in answer.error
    assert "Traceback" not in answer.error
    assert not list(tmp_path.rglob("result.json"))


def test_it_searches_one_run_and_something(call: Any) -> None:
    answer = call(*SEARCH, *SMALL, "distiller.temperature=.2")
    assert_one_sentence(answer)
    assert "There is nothing to search" in answer.error


def test_too_many_failures_end_it(call: Any, tmp_path: Path) -> None:
    answer = call(*SEARCH, *SMALL, "teacher.allow_chance=false")
    assert answer.code == 1
    assert (
        "More trials failed than hydra.sweeper.max_failure_rate=0.0 allows: teacher=resnet8 is at chance"
        in answer.error
    )
    assert [trial["value"] for trial in study(tmp_path)] == [None]
