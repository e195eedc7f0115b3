"""A run that is stopped anywhere and goes on ends with the bits of one that was not."""

import fcntl
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import harness
from distill.errors import UserError
from distill.keeper import Keeper

# the queue wraps within the first epoch
SHORT_QUEUE = ("distiller.queue_length=600",)


def method(name: str) -> list[str]:
    teacher = () if name == "none" else harness.RANDOM_TEACHER
    return [f"distiller={name}", *(teacher or ("teacher=none",)), *(SHORT_QUEUE if name == "mcld" else ())]


def assert_equal_bits(one: Path, other: Path) -> None:
    a, b = harness.state(one), harness.state(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
    assert (one / "metrics.csv").read_text().count("\n") == 3
    for left, right in zip(rows(one), rows(other), strict=True):
        assert left == right


def rows(folder: Path) -> list[list[str]]:
    """metrics.csv without the column that measures time."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [line[:-1] for line in lines]


def columns(folder: Path) -> list[str]:
    return rows(folder)[0]


@pytest.mark.parametrize("name", harness.METHODS)
def test_killed_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    """Default precision; killed at a step that differs from method to method."""
    step = random.Random(name).randrange(2, 11)
    config = harness.configure(*harness.SMALL, *method(name), "trainer.precision=auto", "checkpoint.steps=1")
    harness.execute(config, tmp_path / "whole")
    harness.execute(config, tmp_path / "killed", kill_at=step)
    assert not (tmp_path / "killed/result.json").exists()
    harness.execute(config, tmp_path / "killed")
    assert_equal_bits(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("step", range(13))
def test_at_every_step(step: int, tmp_path: Path, whole: Path) -> None:
    """Checkpoints every second step, micro-batches of two: what lies after the last one is done again."""
    config = harness.configure(*harness.SMALL, *method("mcld"), "checkpoint.steps=2", "recipe.accumulate=2")
    harness.execute(config, tmp_path, kill_at=2 * step)
    harness.execute(config, tmp_path)
    assert_equal_bits(whole, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    harness.execute(harness.configure(*harness.SMALL, *method("mcld"), "recipe.accumulate=2"), folder)
    return folder


def test_killed_between_the_last_epoch_and_the_result(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for file in ("result.json", "student.safetensors"):
        (tmp_path / "run" / file).unlink()
    harness.execute(harness.configure(*harness.SMALL, *method("mcld"), "recipe.accumulate=2"), tmp_path / "run")
    found, expected = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "run", whole))
    for key in ("best", "last", "teacher", "images_per_second", "hash"):
        assert found[key] == expected[key]
    one, other = (load_file(folder / "student.safetensors") for folder in (tmp_path / "run", whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_killed_twice_and_between_epochs(tmp_path: Path, whole: Path) -> None:
    config = harness.configure(*harness.SMALL, *method("mcld"), "checkpoint.steps=1", "recipe.accumulate=2")
    for step in (3, 4, 7):
        harness.execute(config, tmp_path, kill_at=step)
    harness.execute(config, tmp_path)
    assert_equal_bits(whole, tmp_path)


def test_checkpoints_only_every_few_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the best, the due and the last epoch is written; the scores are those of all."""
    saved = []
    save = Keeper._save
    monkeypatch.setattr(Keeper, "_save", lambda self, *a, **k: (saved.append(self.last["epoch"]), save(self, *a, **k)))
    config = harness.configure(*harness.SMALL, *method("kd"), "recipe.epochs=8", "recipe.lr=1", "checkpoint.epochs=3")
    harness.execute(config, tmp_path)
    top1 = [float(row[columns(tmp_path).index("test/top1")]) for row in rows(tmp_path)[1:]]
    better = {epoch for epoch in range(1, 9) if top1[epoch - 1] > max([-1.0, *top1[: epoch - 1]])}
    assert saved == sorted(better | {3, 6, 8})
    assert len(saved) < 8


def test_one_process_at_a_time(tmp_path: Path) -> None:
    config = harness.configure(*harness.SMALL, *method("kd"), "recipe.epochs=1")
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"^Another process is training in .*: wait for it, or end it\.$"):
        harness.execute(config, tmp_path)
    assert list(tmp_path.iterdir()) == []
    os.close(handle)
    harness.execute(config, tmp_path)
    assert (tmp_path / "result.json").exists()


def test_the_best_is_not_replaced_by_what_followed_it(tmp_path: Path) -> None:
    """The last checkpoint is of a step after the epoch that was the best so far."""
    config = harness.configure(*harness.SMALL, *method("kd"), "checkpoint.steps=1")
    harness.execute(config, tmp_path, kill_at=8)
    best = (tmp_path / "best.ckpt").read_bytes()
    assert (tmp_path / "last.ckpt").read_bytes() != best
    harness.execute(config, tmp_path, kill_at=0)
    assert (tmp_path / "best.ckpt").read_bytes() == best
