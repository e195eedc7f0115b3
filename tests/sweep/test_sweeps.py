"""A sweep on the command line, stopped, repeated, with failures: nothing is run twice."""

import gc
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback

import harness
from command_line import Answer, carried_out
from distill.keeper import Keeper
from distill.module import Distillation
from distill.run import train
from distill.sweep.jobs import look_up

# an experiment of one's own: the form of the papers' tables, on digits
TABLE = """\
# @package _global_
table:
  name: mine
  kind: table
  each: >-
    data=digits data.size=16 student=resnet8 student.widths=[4,4,8,8] recipe.batch_size=256 recipe.epochs=2
    trainer.precision=32-true seed=0
  rows:
    - teacher=none distiller=none
    - teacher=resnet8 teacher.widths=[4,4,8,8] teacher.weights=null teacher.allow_chance=true distiller=kd,at
  then: look at it
"""
QUIET = "sweep.estimate=0"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`python src/train.py -m experiment=mine ...` in a folder of its own."""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(TABLE)
    monkeypatch.chdir(tmp_path)

    def line(*words: str) -> Answer:
        place = f"hydra.searchpath=[file://{tmp_path}/conf]"
        return carried_out(monkeypatch, capsys, "-m", place, "experiment=mine", QUIET, *words)

    return line


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every epoch that is trained, by whichever run."""
    epochs: list[int] = []
    end = Keeper.on_train_epoch_end

    def count(self: Keeper, trainer: Any, module: Any) -> None:
        epochs.append(module.current_epoch + 1)
        end(self, trainer, module)

    monkeypatch.setattr(Keeper, "on_train_epoch_end", count)
    return epochs


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Of all runs, by method."""
    found = [json.loads(path.read_text()) for path in folder.rglob("result.json")]
    return {result["names"]["distiller"]: result for result in found}


def first_line(answer: Answer) -> str:
    return next(line for line in answer.out.splitlines() if " runs: " in line)


def test_a_table_is_stopped_and_repeated(
    call: Any, trained: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed in the second run's second epoch: the first is not touched again, the second goes on, the third begins."""
    build, runs = train._trainer, []

    def with_killer(*args: Any) -> Any:
        trainer = build(*args)
        runs.append(trainer)
        if len(runs) == 2:
            trainer.callbacks.insert(0, harness.KillAt(8))
        return trainer

    monkeypatch.setattr(train, "_trainer", with_killer)
    with pytest.raises(harness.Killed):
        call()
    assert trained == [1, 2, 1]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("none-resnet8/**/*") if path.is_file()}
    assert results(tmp_path).keys() == {"none"}
    trained.clear()

    answer = call()
    assert answer.code == 0, answer.error
    assert first_line(answer) == "3 runs: 1 finished, 1 half-finished, 1 to begin"
    assert trained == [2, 1, 2]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results(tmp_path).keys() == {"none", "kd", "at"}
    assert "3 runs: 1 were finished, 2 more are now, 0 failed" in answer.out
    assert answer.out.rstrip().endswith("Now: look at it")
    places = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("result.json"))
    assert all(
        re.search(r"outputs/digits/\w+-resnet8/\w+/2_epochs_seed0_[0-9a-f]{8}_data.size-16_", place) for place in places
    )
    trained.clear()

    answer = call()
    assert (answer.code, trained) == (0, [])
    assert first_line(answer) == "3 runs: 3 finished, 0 half-finished, 0 to begin"


def test_a_failed_run_is_listed_with_its_reason_and_stops_no_other(call: Any, tmp_path: Path, trained: list[int]):
    answer = call("teacher.keep=memory", "recipe.epochs=1", "teacher.allow_chance=false")
    assert answer.code == 1
    assert "Traceback" not in answer.out + answer.error
    assert results(tmp_path).keys() == {"none"}
    assert "3 runs: 0 were finished, 1 more are now, 2 failed" in answer.out
    failed = answer.out.split("2 failed\n")[1]
    assert failed.count("  failed: ") == 2
    assert failed.count("teacher=resnet8 is at chance") == 2
    assert "The same command tries them again." in failed
    # methods on features keep no answers; in a table they ask
    assert failed.count("teacher.keep=memory") == 1
    trained.clear()
    answer = call("teacher.keep=memory", "recipe.epochs=1")
    assert (answer.code, trained) == (0, [1, 1])


def test_what_went_wrong_unexpectedly_is_shown_where_it_did(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Breaks(Callback):
        def on_train_start(self, *_: Any) -> None:
            raise RuntimeError("something\nelse")

    build, runs = train._trainer, []

    def with_error(*args: Any) -> Any:
        trainer = build(*args)
        runs.append(trainer)
        trainer.callbacks += [Breaks()] if len(runs) == 1 else []
        return trainer

    monkeypatch.setattr(train, "_trainer", with_error)
    answer = call("recipe.epochs=1", "distiller=none,kd")
    assert answer.code == 1
    assert "Traceback" in answer.error
    assert "RuntimeError: something else" in answer.out
    assert results(tmp_path).keys() == {"kd"}


def test_an_ordinary_sweep_repeats_nothing_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, trained: list[int]
):
    monkeypatch.chdir(tmp_path)
    words = (*harness.SMALL, *harness.RANDOM_TEACHER, "recipe.epochs=1", QUIET)
    one = carried_out(monkeypatch, capsys, "-m", *words, "distiller=kd")
    assert (one.code, trained) == (0, [1])
    both = carried_out(monkeypatch, capsys, "-m", *words, "distiller=kd,dkd")
    assert (both.code, trained) == (0, [1, 1])
    assert first_line(both) == "2 runs: 1 finished, 0 half-finished, 1 to begin"
    assert {name for name, (state, _) in look_up(tmp_path / "outputs").items() if state == "finished"} == {
        result["hash"] for result in results(tmp_path).values()
    }
    # a folder that is named is the whole of what counts
    named = carried_out(monkeypatch, capsys, "-m", *words, "distiller=kd", "hydra.sweep.dir=elsewhere")
    assert first_line(named) == "1 runs: 0 finished, 0 half-finished, 1 to begin"
    assert (tmp_path / "elsewhere").is_dir()
    assert trained == [1, 1, 1]


def test_evidence_of_runs_elsewhere_is_no_run(tmp_path: Path):
    run = tmp_path / "run"
    harness.execute(harness.configure(*harness.SMALL, "teacher=none", "distiller=none", "recipe.epochs=1"), run)
    (found,) = look_up(tmp_path).values()
    assert found == ("finished", run)
    (run / "config.yaml").unlink()
    assert look_up(tmp_path) == {}


def test_a_run_leaves_nothing_in_memory_for_the_next(
    call: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Neither one that ends nor one that fails: a table may have hundreds of them in one process."""
    alive: list[int] = []
    carry_out = train.carry_out

    def modules() -> int:
        return sum(isinstance(thing, Distillation) for thing in gc.get_objects())

    def counted(config: Any, folder: Path) -> float:
        alive.append(modules())
        return carry_out(config, folder)

    def broken(self: Keeper, trainer: Any, module: Any) -> None:
        if module.current_epoch == 1 and module.distiller.needs_teacher:
            raise RuntimeError("something broke")

    monkeypatch.setattr(train, "carry_out", counted)
    monkeypatch.setattr(Keeper, "on_train_epoch_start", broken, raising=False)
    gc.collect()
    request.addfinalizer(gc.enable)
    gc.disable()  # by itself it may come or not
    before = modules()  # other tests'
    answer = call("seed=0,1")
    assert "4 failed" in answer.out, answer.error
    assert alive == [before] * 6
