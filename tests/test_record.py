"""The hash of a run: of what decides its result, and of nothing else."""

import copy
import os
from pathlib import Path

import pytest

import harness
from distill.record import digest, fingerprint

WORDS = ("distiller=kd", "teacher=resnet56", "student=resnet20")


def hash_of(*overrides: str) -> str:
    return fingerprint(harness.configure(*WORDS, *overrides))


@pytest.fixture(scope="module")
def usual() -> str:
    return hash_of()


@pytest.mark.parametrize(
    "override",
    [
        *("data.root=/elsewhere", "data.download=false", "data.eval_batch_size=7", "teacher.keep=disk"),
        *("teacher.keep_in=/kept", "logger=none", "checkpoint.epochs=9", "trainer.devices=2", "trainer=ddp"),
        *("trainer.accelerator=cpu", "trainer.compile=false", "trainer.log_every_n_steps=1"),
        "+trainer.enable_progress_bar=false",
    ],
)
def test_where_a_run_lies_and_runs_is_not_in_it(override, usual):
    assert hash_of(override) == usual


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "distiller.temperature=2", "recipe.epochs=3", "data.holdout=5000", "teacher=resnet110"),
        *("trainer.precision=32-true", "+trainer.limit_train_batches=5", "trainer.gradient_clip_val=1"),
        *("optimizer.nesterov=true", "student=resnet8"),
    ],
)
def test_what_decides_the_result_is(override, usual):
    assert hash_of(override) != usual


def test_weights_count_by_their_content(tmp_path: Path):
    one, same, other = (tmp_path / name for name in ("one.pth", "same.pth", "other.pth"))
    for path, content in ((one, b"1" * 99), (same, b"1" * 99), (other, b"2" * 99)):
        path.write_bytes(content)
    first = hash_of(f"teacher.weights={one}")
    assert hash_of(f"teacher.weights={same}") == first
    assert hash_of(f"teacher.weights={other}") != first
    assert hash_of(f"teacher.weights={tmp_path}/absent.pth") == hash_of("teacher.weights=/nowhere/absent.pth") != first
    config = harness.configure(*WORDS, f"teacher.weights={one}")
    before = copy.deepcopy(config)
    assert fingerprint(config) == first
    assert config == before


def test_a_file_that_changes_is_read_again(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(b"a")
    first = digest(file)
    file.write_bytes(b"b")
    os.utime(file, ns=(1, 1))
    assert digest(file) != first
    assert digest(tmp_path / "absent") is None


def test_a_methods_own_weights_are_numbers():
    config = harness.configure(*WORDS)
    config["distiller"]["weights"] = [1, 2]
    one = fingerprint(config)
    config["distiller"]["weights"] = [1, 3]
    assert fingerprint(config) != one
