"""The papers' tables from end to end on real CIFAR-100 images: a few steps of small networks, all methods of all."""

import json
from pathlib import Path
from typing import Any

import pytest

import harness
from command_line import carried_out
from distill.sweep.rows import expand

FOLDER = harness.CONF / "experiment"
TABLES = {path.stem: table for path in sorted(FOLDER.glob("*.yaml")) if (table := harness.yaml(path).get("table"))}
ON_CIFAR = [n for n, t in TABLES.items() if t["kind"] in ("table", "figure", "probe") and n != "table5"]
# networks of others would take minutes for a few steps; in their place, each table's rows are those of one small pair
SMALL = (
    *("teacher=resnet8", "student=resnet8", "teacher.weights=null", "teacher.allow_chance=true", "seed=0"),
    *("recipe.epochs=1", "+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1", "sweep.estimate=0"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tables, so that none runs again what another has run."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n, t in TABLES.items() if t["kind"] in ("table", "figure", "probe") and n != "table5"]
)
def test_it_runs_and_is_filled(
    name: str, place: Path, cifar_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = (f"experiment={name}", *SMALL, f"data.root={cifar_root}")
    answer = carried_out(monkeypatch, capsys, "-m", *words)
    assert answer.code == 0, answer.error
    wanted = expand(
        TABLES[name]["rows"], TABLES[name].get("each", ""), [w for w in SMALL if "sweep" not in w], loader=None
    )
    assert 1 <= len(wanted) <= 20
    assert answer.out.startswith(f"{len(wanted)} runs: ")
    found = [json.loads(path.read_text()) for path in place.rglob("result.json")]
    for line in wanted:
        assert any(fits(result, line) for result in found), line
    assert "Now: python s" in answer.out


def fits(result: dict[str, Any], words: list[str]) -> bool:
    """Whether a result is that of a command line: by what a table knows it by."""
    said = dict(word.split("=", 1) for word in words)
    variant = {word for word in words if word.startswith(("distiller.", "optimizer="))}
    return (
        all(result["names"][key] == said[key] for key in ("teacher", "student", "distiller"))
        and set(result["variant"].split()) == variant
        and result["epochs"] == 1
    )
