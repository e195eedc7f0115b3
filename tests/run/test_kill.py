"""`kill` and `kill -9` on the real command line, and the one command that goes on from there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import harness

RUN = (
    *("data=digits", "data.size=16", "student=resnet8", "student.widths=[4,4,8,8]", "recipe.batch_size=64"),
    *("distiller=mcld", "distiller.queue_length=600", *harness.RANDOM_TEACHER, "recipe.epochs=6"),
)


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(harness.ROOT / "src/train.py"), *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(file: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_process_resumes_with_equal_bits(tmp_path: Path) -> None:
    killed = start(tmp_path, *RUN, "checkpoint.steps=7", "hydra.run.dir=killed")
    whole = start(tmp_path, *RUN, "hydra.run.dir=whole")
    wait_for(tmp_path / "killed/last.ckpt", killed)
    time.sleep(0.3)  # anywhere: in a step, or while something is written
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/result.json").exists()
    resumed = start(tmp_path, "resume=killed")
    for process in (whole, resumed):
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    assert_equal(tmp_path / "whole", tmp_path / "killed")


def assert_equal(whole: Path, resumed: Path) -> None:
    """Bits of the state, and every logged number but the speed."""
    one, other = harness.state(whole), harness.state(resumed)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    curves = [(run / "metrics.csv").read_text().splitlines() for run in (whole, resumed)]
    assert [line.rsplit(",", 1)[0] for line in curves[0]] == [line.rsplit(",", 1)[0] for line in curves[1]]


def test_a_process_told_to_stop_saves_where_it_is(tmp_path: Path) -> None:
    """As schedulers do with SIGTERM; no other checkpoint is due but those of the best epochs."""
    rare = ("checkpoint.minutes=null", "checkpoint.epochs=99")
    for attempt in range(5):  # between two epochs there is nothing new to save
        folder = tmp_path / f"stopped{attempt}"
        stopped = start(tmp_path, *RUN, *rare, f"hydra.run.dir={folder.name}")
        wait_for(folder / "best.ckpt", stopped)
        written = (folder / "last.ckpt").stat().st_mtime_ns
        time.sleep(0.1 * attempt)
        stopped.send_signal(signal.SIGTERM)
        output, _ = stopped.communicate(timeout=120)
        assert stopped.returncode == 128 + signal.SIGTERM, output
        assert "resume=" in output
        assert not (folder / "result.json").exists()
        if (folder / "last.ckpt").stat().st_mtime_ns > written:
            break
    else:
        raise AssertionError("it never saved where it was")
    config = harness.configure(*RUN)
    harness.execute(config, tmp_path / "whole")
    harness.execute(config, folder)
    assert_equal(tmp_path / "whole", folder)
