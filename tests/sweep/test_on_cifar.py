"""The papers' tables from end to end on real CIFAR-100 images: a few steps of small networks, all methods of all."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import harness
from command_line import carried_out
from distill.analysis.layout import PROBES
from distill.sweep.rows import expand

FOLDER = harness.CONF / "experiment"
TABLES = {path.stem: table for path in sorted(FOLDER.glob("*.yaml")) if (table := harness.yaml(path).get("table"))}
# Table 5 and the transformers have tests of their own below
ON_CIFAR = [
    name
    for name, table in TABLES.items()
    if table["kind"] in ("table", "figure", "probe") and name not in ("table5", "vit_students")
]
# networks of others would take minutes for a few steps; in their place, each table's rows are those of one small pair
PAIR = ("teacher=resnet20", "student=resnet8")
SHORT = ("seed=0", "recipe.epochs=1", "+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1")
QUIET = "sweep.estimate=0"
# of what follows the runs, in a shorter form
LESS = {
    "figure4": "--limit 300",
    "figure6": "--limit 300",
    "table8": "data.complete=false recipe.epochs=2",
    "table9": "data.complete=false recipe.epochs=2",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tables, so that none runs again what another has run."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_CIFAR)
def test_it_runs_and_is_filled(
    name: str, place: Path, cifar_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    small = (*PAIR, f"teacher.weights={harness.public_weights('resnet20')}", *SHORT)
    answer = carried_out(monkeypatch, capsys, "-m", f"experiment={name}", *small, f"data.root={cifar_root}", QUIET)
    assert answer.code == 0, answer.error
    table = TABLES[name]
    wanted = expand(table["rows"], table.get("each", ""), small, loader=None)
    found = [json.loads(path.read_text()) for path in Path("outputs").rglob("result.json")]
    fitting = {i for i, result in enumerate(found) for line in wanted if fits(result, line)}
    for line in wanted:
        assert any(fits(result, line) for result in found), line
    assert answer.out.startswith(f"{len(fitting)} runs: ")  # rows that are alike at this length are one run
    follow(name, table, answer.out.rpartition("\nNow: ")[2], cifar_root)


@pytest.mark.slow
def test_transformers_run_beside_themselves_alone(
    tmp_path: Path, cifar_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 64 px, which takes under a tenth of the arithmetic."""
    monkeypatch.chdir(tmp_path)
    small = ("student=deit_tiny", "student.input_size=64", "data.crop_size=64", "recipe.batch_size=8")
    words = (*small, *SHORT, "teacher.weights=null", "teacher.allow_chance=true", f"data.root={cifar_root}", QUIET)
    answer = carried_out(monkeypatch, capsys, "-m", "experiment=vit_students", *words)
    assert answer.code == 0, answer.error
    assert answer.out.startswith("4 runs: ")
    rows = json.loads(carry(answer.out.rpartition("\nNow: ")[2], "--json", cifar_root))["rows"]
    assert {(row["student"], row["distiller"]) for row in rows} == {
        ("deit_tiny", method) for method in ("none", "lskd_kd", "kd", "mcld")
    }


@pytest.mark.slow
def test_imagenets_table_runs_on_a_part_which_does_not_fill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(os.environ.get("DISTILL_DATA", "none"), "imagenet-sample")
    if not root.exists():
        pytest.skip("needs DISTILL_DATA with imagenet-sample/")
    monkeypatch.chdir(tmp_path)
    small = ("distiller=kd,mcld", "recipe.batch_size=4", "teacher.weights=null", "teacher.allow_chance=true")
    words = (*small, *SHORT, f"data.root={root}", "data.complete=false", "data.workers=1", QUIET)
    answer = carried_out(monkeypatch, capsys, "-m", "experiment=table5", *words)
    assert answer.code == 0, answer.error
    assert answer.out.startswith("4 runs: ")
    rows = json.loads(carry(answer.out.rpartition("\nNow: ")[2], "--json", root))["rows"]
    assert all(cell["ours"]["best"]["mean"] is None for row in rows for cell in row["cells"])  # other images, batches
    rows = json.loads(carry("python scripts/table.py --data imagenet --metric top5", "--json", root))["rows"]
    assert [row["best_top5"]["mean"] for row in rows] == [pytest.approx(row["last_top5"]["mean"]) for row in rows]
    assert sorted((row["student"], row["distiller"]) for row in rows) == [
        (student, method) for student in ("imagenet_resnet18", "mobilenetv1") for method in ("kd", "mcld")
    ]


def follow(name: str, table: dict[str, Any], then: str, data: Path) -> None:
    """Carry out what the sweep says comes next: a table must be full, a picture drawn."""
    assert then
    if table["kind"] == "probe" and not (data / "tiny-imagenet-200").exists():
        pytest.skip("needs DISTILL_DATA with tiny-imagenet-200/")
    for words in then.strip().split("; "):
        if "scripts/table.py" in words:
            full(table, json.loads(carry(words, "--json", data)))
            continue
        carry(words.replace("data=stl10,tiny_imagenet", "data=tiny_imagenet"), LESS.get(name, ""), data)
        if "scripts/figures.py" in words:
            assert Path(f"{name}.png").stat().st_size > 10_000


def full(table: dict[str, Any], content: dict[str, Any]) -> None:
    """Whether a table has a number of ours in every place that can be filled here."""
    if "number" not in table:
        assert {row["distiller"] for row in content["rows"]} >= {"kd", "dkd", "la", "rc", "lr", "rld"}
        return
    cells = [cell for row in content["rows"] for cell in row["cells"]]
    there = [cell for cell in cells if table["number"] not in PROBES or cell["data"] == "tiny_imagenet"]
    assert there
    for cell in cells:
        assert (cell["ours"]["best"]["mean"] is not None) == (cell in there), cell


def carry(words: str, more: str, data: Path) -> str:
    """One command that the sweep printed, with some words more; what it prints."""
    interpreter, script, *rest = shlex.split(words)
    assert interpreter == "python"
    line = [sys.executable, str(harness.ROOT / script), *rest, *shlex.split(more)]
    done = subprocess.run(
        line, env={**os.environ, "DISTILL_DATA": str(data)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fits(result: dict[str, Any], words: list[str]) -> bool:
    """Whether a result is that of a command line: by what a table knows it by."""
    said = dict(word.split("=", 1) for word in words)
    variant = {word for word in words if word.startswith(("distiller.", "optimizer="))}
    return (
        all(result["names"][key] == said[key] for key in ("teacher", "student", "distiller"))
        and set(result["variant"].split()) == variant
        and result["epochs"] == 1
    )
