"""`kill -9` on the real command line, and the one command that goes on from there."""

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


def test_killed_process_resumes_with_equal_bits(tmp_path: Path) -> None:
    killed = start(tmp_path, *RUN, "checkpoint.steps=7", "hydra.run.dir=killed")
    whole = start(tmp_path, *RUN, "hydra.run.dir=whole")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/last.ckpt").exists():
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)  # anywhere: in a step, or while something is written
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/result.json").exists()
    resumed = start(tmp_path, "resume=killed")
    for process in (whole, resumed):
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    one, other = harness.state(tmp_path / "whole"), harness.state(tmp_path / "killed")
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    curves = [(tmp_path / run / "metrics.csv").read_text().splitlines() for run in ("whole", "killed")]
    assert [line.rsplit(",", 1)[0] for line in curves[0]] == [line.rsplit(",", 1)[0] for line in curves[1]]
