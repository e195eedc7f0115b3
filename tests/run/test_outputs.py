"""What a run leaves behind, and what reads it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import distill
import harness
from distill import tracking
from distill.analysis.observed import read_observed
from distill.errors import UserError
from distill.run.parts import build_data

MCLD = ("distiller=mcld", "distiller.ce_weight=1", *harness.RANDOM_TEACHER)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    harness.execute(harness.configure(*harness.SMALL, *MCLD), folder)
    return folder


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def rows(folder: Path) -> list[dict[str, float]]:
    header, *lines = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines())
    return [dict(zip(header, map(float, line), strict=True)) for line in lines]


def test_files(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "metrics.csv", "result.json", "last.ckpt", "best.ckpt"),
        *("student.safetensors", "teacher.safetensors"),
    }


def test_result_agrees_with_metrics(run: Path) -> None:
    found, table = result(run), rows(run)
    assert [row["epoch"] for row in table] == [1, 2]
    assert [row["step"] for row in table] == [6, 12]
    for name in ("top1", "top5", "nll", "ece", "agreement"):
        assert found["last"][name] == table[-1][f"test/{name}"]
    best = max(table, key=lambda row: row["test/top1"])
    assert found["best"] == {"epoch": best["epoch"], **{k[5:]: v for k, v in best.items() if k.startswith("test/")}}
    parameters = sum(parameter.numel() for parameter in distill.load(run).parameters())
    assert found["parameters"] == {"student": parameters, "deployed": parameters, "extra": 0}
    assert found["status"] == "finished"
    assert found["images_per_second"] > 0
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


def test_logged_terms_sum_to_the_logged_loss(run: Path) -> None:
    for row in rows(run):
        terms = [v for k, v in row.items() if k.startswith("train/") and k not in ("train/loss", "train/top1")]
        assert len(terms) == 4
        assert sum(terms) == pytest.approx(row["train/loss"], rel=1e-12)


def test_a_finished_run_is_left_alone(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    harness.execute(harness.configure(*harness.SMALL, *MCLD), run)
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_loaded_student_scores_as_recorded(run: Path, tmp_path: Path) -> None:
    moved = shutil.copy(run / "student.safetensors", tmp_path / "elsewhere.safetensors")
    data = build_data(harness.configure(*harness.SMALL, *MCLD))
    for source in (run, str(moved)):
        student = distill.load(source)
        assert not student.training
        correct = sum(
            (student(batch.images).logits.argmax(1) == batch.labels).sum().item() for batch in data.test_dataloader()
        )
        assert 100 * correct / 359 == pytest.approx(result(run)["last"]["top1"], abs=1e-4)


@pytest.mark.parametrize("file", ["", "last.ckpt", "student.safetensors"])
def test_eval_of_a_run(run: Path, file: str, tmp_path: Path) -> None:
    scores = harness.evaluate(f"source={run / file}", f"output={tmp_path / 'scores.json'}")
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    assert list(scores) == ["top1", "top5", "nll", "ece"]
    last = result(run)["last"]
    for name, value in scores.items():
        assert value == pytest.approx(last[name], rel=1e-5)


def test_eval_of_the_best_epoch_with_a_teacher(run: Path) -> None:
    scores = harness.evaluate(
        f"source={run / 'best.ckpt'}", "teacher=resnet8", "teacher.widths=[4,4,8,8]", f"teacher.weights={run}/last.ckpt"
    )
    assert scores["top1"] == pytest.approx(result(run)["best"]["top1"], abs=1e-4)
    assert 0 <= scores["agreement"] <= 100


def test_eval_of_a_weights_file(run: Path) -> None:
    network = ("student=resnet8", "student.widths=[4,4,8,8]", "data=digits", "data.size=16")
    scores = harness.evaluate(*network, f"student.weights={run / 'student.safetensors'}")
    assert scores["top1"] == pytest.approx(result(run)["last"]["top1"], abs=1e-4)


def test_eval_wants_to_know_what(run: Path) -> None:
    with pytest.raises(UserError, match="Say what to evaluate"):
        harness.evaluate("data=digits")
    with pytest.raises(UserError, match="Say what to evaluate"):
        harness.evaluate("data=digits", "student=resnet8", f"source={run}")
    with pytest.raises(UserError, match=r"student\.weights=FILE is missing"):
        harness.evaluate("data=digits", "student=resnet8")
    with pytest.raises(UserError, match="does not exist"):
        harness.evaluate("source=nowhere")


def test_holdout_run_scores_the_test_set_at_the_end(tmp_path: Path) -> None:
    harness.execute(harness.configure(*harness.SMALL, *MCLD, "data.holdout=300"), tmp_path)
    found = result(tmp_path)
    assert found["evaluated_on"] == "holdout"
    assert "holdout/top1" in rows(tmp_path)[0]
    for which, file in (("last", "last.ckpt"), ("best", "best.ckpt")):
        scores = harness.evaluate(f"source={tmp_path / file}")
        assert found["test"][which]["top1"] == pytest.approx(scores["top1"], abs=1e-4)
    held = harness.evaluate(f"source={tmp_path}", "split=holdout")
    assert held["top1"] == pytest.approx(found["last"]["top1"], abs=1e-4)


def test_a_composite_is_what_is_evaluated_saved_and_loaded(tmp_path: Path) -> None:
    config = harness.configure(*harness.SMALL, *harness.RANDOM_TEACHER, "distiller=kd")
    config["distiller"] = {"_target_": "methods.Borrows", "weight": 1.0}
    harness.execute(config, tmp_path)
    found = result(tmp_path)
    assert found["parameters"]["deployed"] == found["parameters"]["student"] + 8 * 8 + 8 + 8 * 10 + 10
    assert found["parameters"]["extra"] == 8 * 8 + 8
    scores = harness.evaluate(f"source={tmp_path}")
    assert scores["top1"] == pytest.approx(found["last"]["top1"], abs=1e-4)
    assert scores["nll"] == pytest.approx(found["last"]["nll"], rel=1e-5)


def test_one_seed_gives_one_start_for_all_methods(tmp_path: Path) -> None:
    """The first epoch's first batch has the same cross-entropy whatever else a method draws."""
    first = {}
    for name, more in (("none", ["teacher=none"]), ("kd", harness.RANDOM_TEACHER), ("mcld", MCLD[1:])):
        one = ("recipe.batch_size=1438", "recipe.epochs=1", "recipe.lr=0")
        harness.execute(harness.configure(*harness.SMALL, f"distiller={name}", *more, *one), tmp_path / name)
        weight = 0.1 if name == "kd" else 1.0
        first[name] = rows(tmp_path / name)[0]["train/ce"] / weight
    assert first["kd"] == pytest.approx(first["none"], rel=1e-6)
    assert first["mcld"] == pytest.approx(first["none"], rel=1e-6)


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulated_steps_equal_whole_ones(accumulate: int, tmp_path: Path) -> None:
    """Also the last, shorter one: without BatchNorm rows do not see each other."""
    plain = [s for s in harness.SMALL if "widths" not in s]
    plain += ["student._target_=networks.NoNorm", "+student.width=8", "~student.depth", "~student.widths"]
    plain += ["distiller=kd", *harness.RANDOM_TEACHER, "recipe.batch_size=100", "recipe.epochs=1"]
    harness.execute(harness.configure(*plain), tmp_path / "whole")
    harness.execute(harness.configure(*plain, f"recipe.accumulate={accumulate}"), tmp_path / "parts")
    one, other = harness.state(tmp_path / "whole"), harness.state(tmp_path / "parts")
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-6)


def test_wandb_records_offline_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = harness.configure(
        *harness.SMALL, *MCLD, "logger=wandb", "checkpoint.steps=1", "trainer.log_every_n_steps=2"
    )
    harness.execute(config, tmp_path, kill_at=8)
    wandb.finish()
    first = (tmp_path / "wandb_id.txt").read_text()
    summary: dict[str, Any] = {}
    close = tracking.close_run
    pictures: dict[str, list[Path]] = {}

    def look_and_close() -> None:
        assert wandb.run is not None
        for key in ("test/top1", "test/agreement", "epoch"):
            summary[key] = wandb.run.summary.get(key)
        assert set(wandb.run.tags) == {"digits", "resnet8", "mcld"}
        assert wandb.run.config["distiller"]["temperature"] == 0.2
        pictures["logged"] = sorted(Path(wandb.run.dir).rglob("media/images/pictures/*.png"))
        close()

    monkeypatch.setattr(tracking, "close_run", look_and_close)
    harness.execute(config, tmp_path)
    assert wandb.run is None
    found = result(tmp_path)
    assert summary["test/top1"]["last"] == pytest.approx(found["last"]["top1"])
    assert summary["test/top1"]["max"] == pytest.approx(found["best"]["top1"])
    assert summary["epoch"] == 2
    assert (tmp_path / "wandb_id.txt").read_text() == first
    assert [path.name.split("_")[0] for path in pictures["logged"]] == ["accuracy", "correlation difference"]
    drawn = [tmp_path / name for name in ("accuracy.png", "correlation.png")]
    assert [path.read_bytes() for path in pictures["logged"]] == [path.read_bytes() for path in drawn]
    assert read_observed(tmp_path / "features.safetensors").teacher is not None
    records = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert records
    assert all(record.name.endswith(first) for record in records)
