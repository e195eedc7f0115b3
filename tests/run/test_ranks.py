"""Two processes over gloo take the steps that one process would."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from safetensors.torch import load_file
from torch import nn

import harness
import networks
from distill import launch
from distill.kept import KeptTeacher
from distill.run import train

TWO = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
# 103 images in odd batches: the ranks hold 4 and 3 rows, and 3 and 2 of the last batch
UNEVEN = ("data.holdout=1335", "recipe.batch_size=7", "recipe.epochs=1", "recipe.lr=0.01")
# large published weights on narrow networks: at that rate these few steps make 0.01 out of a difference of 1e-7
STEEP = ("at", "catkd", "dist", "fitnet", "nst", "pkt", "reviewkd", "rkd")


@pytest.fixture(scope="module")
def worker() -> Iterator["subprocess.Popen[str]"]:
    path = os.pathsep.join([str(harness.ROOT / "src"), str(harness.ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, str(harness.ROOT / "tests/rank_worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    yield process
    process.kill()


@pytest.fixture
def two_ranks(worker: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch.ranks` with the worker that is there already in place of a new child."""

    @contextmanager
    def ranks(world: int, folder: Path) -> Iterator[None]:
        assert world == 2
        shared = {
            "WORLD_SIZE": "2",
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(launch._free_port()),
        }
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(json.dumps({"env": {**shared, "LOCAL_RANK": "1"}, "folder": str(folder)}) + "\n")
        worker.stdin.flush()
        with monkeypatch.context() as patch:
            for name, value in {**shared, "LOCAL_RANK": "0"}.items():
                patch.setenv(name, value)
            yield
        assert worker.stdout.readline() == "done\n"

    monkeypatch.setattr(launch, "ranks", ranks)


def method(name: str) -> list[str]:
    teacher = ["teacher=none"] if name == "none" else list(harness.RANDOM_TEACHER)
    # small enough to wrap, and no multiple of the batch
    queue = ["distiller.queue_length=50"] if name == "mcld" else []
    rate = ["recipe.lr=0.0001"] if name in STEEP else []
    # published weights of 9 and more: at the others' rate rounding errors grow a thousandfold
    rate += ["recipe.lr=0.001"] if name.startswith("lskd") else []
    return [f"distiller={name}", *teacher, *queue, *rate]


def assert_same_run(one: Path, two: Path, *, tolerance: float) -> None:
    a, b = load_file(one / "student.safetensors"), load_file(two / "student.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    state, other = harness.state(one), harness.state(two)
    own = [name for name in state if name.startswith("distiller.")]
    assert own == [name for name in other if name.startswith("distiller.")]
    for name in own:
        torch.testing.assert_close(state[name], other[name], rtol=tolerance, atol=tolerance)
    for left, right in zip(metrics(one).items(), metrics(two).items(), strict=True):
        assert left[0] == right[0]
        assert left[1] == pytest.approx(right[1], rel=10 * tolerance, abs=10 * tolerance)


def metrics(folder: Path) -> dict[str, float]:
    header, *rows = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines())
    row: dict[str, Any] = dict(zip(header, map(float, rows[-1]), strict=True))
    del row["images_per_second"]
    return row


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("name", harness.METHODS)
def test_two_ranks_equal_one_process_that_norms_the_halves_apart(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*harness.SMALL, *UNEVEN, *method(name))
    with monkeypatch.context() as patch:  # the student's norms and those of the method
        patch.setattr(nn.BatchNorm2d, "forward", networks.norm_halves_apart)
        harness.execute(harness.configure(*settings), tmp_path / "one")
    harness.execute(harness.configure(*settings, *TWO), tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two", tolerance=2e-5)
    scores = [json.loads((tmp_path / run / "result.json").read_text())["test"] for run in ("one", "two")]
    for which in ("last", "best"):
        assert scores[1][which] == pytest.approx(scores[0][which], rel=1e-3)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("batches", [("recipe.batch_size=7",), ("recipe.batch_size=21", "recipe.accumulate=3")])
def test_two_ranks_equal_plain_training_without_batch_norm(batches: tuple[str, ...], tmp_path: Path) -> None:
    plain = ("student._target_=networks.NoNorm", "+student.width=8", "~student.depth", "~student.widths")
    settings = [s for s in harness.SMALL if "widths" not in s]
    settings += [*UNEVEN, *method("mcld"), *plain, *batches]
    harness.execute(harness.configure(*settings), tmp_path / "one")
    harness.execute(harness.configure(*settings, *TWO), tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two", tolerance=2e-6)


class CopyAside(Callback):
    """Keeps the files of a run as they were after so many batches."""

    def __init__(self, folder: Path, target: Path, batches: int) -> None:
        self.folder, self.target, self.left = folder, target, batches

    def on_train_batch_start(self, *_: Any) -> None:
        if self.left == 0:
            shutil.copytree(self.folder, self.target)
        self.left -= 1


@pytest.mark.usefixtures("two_ranks")
def test_two_ranks_resume_with_equal_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = harness.configure(*harness.SMALL, *UNEVEN, *method("mcld"), *TWO, "checkpoint.steps=1")
    build = train._trainer

    def with_copy(*args: Any) -> Any:
        trainer = build(*args)
        trainer.callbacks.insert(0, CopyAside(tmp_path / "whole", tmp_path / "resumed", 4))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(train, "_trainer", with_copy)
        harness.execute(config, tmp_path / "whole")
    assert not (tmp_path / "resumed/result.json").exists()
    harness.execute(config, tmp_path / "resumed")
    one, other = harness.state(tmp_path / "whole"), harness.state(tmp_path / "resumed")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "resumed")


@pytest.mark.usefixtures("two_ranks")
def test_two_ranks_fill_one_table_of_kept_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each rank computed of its rows is all that one process needs."""
    kept = ("teacher.keep=disk", f"teacher.keep_in={tmp_path / 'kept'}")
    harness.execute(harness.configure(*harness.SMALL, *UNEVEN, *method("mcld"), *TWO, *kept), tmp_path / "two")
    monkeypatch.setattr(KeptTeacher, "_answer", None)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", networks.norm_halves_apart)
    harness.execute(harness.configure(*harness.SMALL, *UNEVEN, *method("mcld"), *kept), tmp_path / "one")
    assert_same_run(tmp_path / "one", tmp_path / "two", tolerance=2e-5)
