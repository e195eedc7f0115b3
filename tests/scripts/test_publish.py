"""What of a run is kept for good."""

import json
import os
from pathlib import Path

import harness
from distill.analysis.store import find_results

RUN = {
    "format": 1,
    "status": "finished",
    "names": {"data": "cifar100", "teacher": "resnet56", "student": "resnet20", "distiller": "mcld"},
    "variant": "distiller.ce_weight=0",
    "seed": 3,
    "epochs": 5,
    "evaluated_on": "test",
    "best": {"epoch": 4, "top1": 50.0, "top5": 80.0},
    "last": {"epoch": 5, "top1": 49.0, "top5": 80.0, "nll": 2.0, "ece": 3.0},
    "teacher": {"top1": 72.0, "top5": 91.0, "weights": "/home/someone/resnet56.pth"},
    "parameters": {"student": 1, "deployed": 1, "extra": 0},
    "seconds": 1.0,
    "images_per_second": 2.0,
    "hash": "0" * 16,
}


def test_results_are_kept_without_paths(tmp_path: Path) -> None:
    run = tmp_path / "outputs/a"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(RUN))
    os.utime(run / "result.json", (1e9, 1e9))
    (run / "metrics.csv").write_text("epoch,test/top1\n1,49\n")
    assert harness.script("publish").main([str(tmp_path / "outputs"), "--to", str(tmp_path / "published")]) == 0
    place = tmp_path / "published/cifar100/resnet56-resnet20/5_epochs/mcld_distiller.ce_weight-0_seed3"
    kept = json.loads((place / "result.json").read_text())
    assert kept["teacher"]["weights"] == "resnet56.pth"
    assert {**kept, "teacher": None} == {**RUN, "teacher": None, "written": 1e9}
    assert find_results([place])[0][0].written == 1e9
    assert (place / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


def test_probes_lie_apart(tmp_path: Path) -> None:
    run = tmp_path / "outputs/a"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({**RUN, "kind": "probe", "teacher": None}))
    assert harness.script("publish").main([str(run), "--to", str(tmp_path / "published")]) == 0
    (kept,) = (tmp_path / "published").rglob("result.json")
    assert kept.relative_to(tmp_path / "published").parts[:3] == ("probe", "cifar100", "resnet56-resnet20")


def test_scores_on_held_out_images_lie_apart(tmp_path: Path) -> None:
    for name, split in (("a", "test"), ("b", "holdout")):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "result.json").write_text(json.dumps({**RUN, "evaluated_on": split}))
    assert harness.script("publish").main([str(tmp_path / "outputs"), "--to", str(tmp_path / "published")]) == 0
    kept = {path.parent.parent.name for path in (tmp_path / "published").rglob("result.json")}
    assert kept == {"5_epochs", "5_epochs_holdout"}


def test_nothing_to_keep(tmp_path: Path) -> None:
    assert harness.script("publish").main([str(tmp_path), "--to", str(tmp_path / "published")]) == 1
