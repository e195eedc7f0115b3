"""Runs side by side: joblib's processes with a GPU each, submitit's jobs, and the ready configuration of a cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import harness
from command_line import process

METHOD = """\
import os
from pathlib import Path
import torch.nn.functional as F
from distill.distillers import Distiller

class Tells(Distiller):
    needs_teacher = False

    def __init__(self, spec, *, folder: str):
        super().__init__()
        Path(folder, f"{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))

    def forward(self, step):
        return {"ce": F.cross_entropy(step.student.logits, step.batch.labels)}
"""
RUN = (*harness.SMALL, "teacher=none", "recipe.epochs=1", "sweep.estimate=0")


@pytest.fixture
def tells(tmp_path: Path) -> tuple[str, ...]:
    """A method that says in which process it was built, and which GPUs that one sees."""
    (tmp_path / "mine/distiller").mkdir(parents=True)
    (tmp_path / "said").mkdir()
    (tmp_path / "mine/tells.py").write_text(METHOD)
    (tmp_path / "mine/distiller/tells.yaml").write_text(f"_target_: tells.Tells\nfolder: {tmp_path}/said\n")
    return ("-cd", str(tmp_path / "mine"), "distiller=tells")


def results(folder: Path) -> list[int]:
    return sorted(json.loads(path.read_text())["seed"] for path in folder.rglob("result.json"))


@pytest.mark.slow
def test_joblibs_processes_have_a_gpu_each(tmp_path: Path, tells: tuple[str, ...]) -> None:
    """Eight runs in two processes, of which four fail; the others are not repeated."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}/sweep")
    line = ("-m", *tells, *RUN, *parallel, "seed=0,1,2,3")
    broken = process(*line, "distiller=tells,kd", CUDA_VISIBLE_DEVICES="4,5")
    assert broken.code == 1
    assert "8 runs: 0 were finished, 4 more are now, 4 failed" in broken.out, broken.error
    assert broken.out.count("needs a teacher") == 4
    assert results(tmp_path / "sweep") == [0, 1, 2, 3]
    said = sorted(path.read_text() for path in (tmp_path / "said").iterdir())
    assert said == ["4", "5"]
    again = process(*line, CUDA_VISIBLE_DEVICES="4,5")
    assert again.code == 0
    assert "4 runs: 4 finished" in again.out


@pytest.mark.slow
def test_joblibs_processes_stop_with_their_sweep(tmp_path: Path) -> None:
    """Each saves where it is, and none begins the third run; the repeated sweep finds both half-finished."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}/sweep")
    rare = ("checkpoint.minutes=null", "checkpoint.epochs=999")
    line = ("-m", *RUN, *parallel, *rare, "distiller=none", "seed=0,1,2", "recipe.epochs=60")
    sweep = subprocess.Popen(
        [sys.executable, str(harness.ROOT / "src/train.py"), *line],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 180
    while len(list(tmp_path.rglob("best.ckpt"))) < 2:
        assert sweep.poll() is None, sweep.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 128 + signal.SIGTERM, output
    again = process(*line)
    assert "3 runs: 0 finished, 2 half-finished, 1 to begin" in again.out
    assert results(tmp_path / "sweep") == [0, 1, 2]


@pytest.mark.slow
def test_submitits_jobs_are_runs(tmp_path: Path) -> None:
    """Its executor on this machine takes the way of a cluster's: a job per run, pickled, in processes of its own."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    path = os.pathsep.join(filter(None, (str(harness.ROOT / "src"), os.environ.get("PYTHONPATH"))))
    local = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", f"hydra.sweep.dir={tmp_path}/sweep")
    answer = process("-m", *RUN, *local, "distiller=none,kd", "seed=0,1", PYTHONPATH=path)
    assert answer.code == 1
    assert "4 runs: 0 were finished, 2 more are now, 2 failed" in answer.out, answer.error
    assert results(tmp_path / "sweep") == [0, 1]


def test_the_cluster_is_ready() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ("+cluster=slurm", "hydra.launcher.partition=gpu", "--cfg", "hydra", "-p", "hydra.launcher")
    answer = process(*words)
    assert answer.code == 0, answer.error
    for said in ("submitit_launcher.SlurmLauncher", "partition: gpu", "gpus_per_node: 1", "max_num_timeout: 20"):
        assert said in answer.out
    config = harness.configure("+cluster=slurm", "distiller=kd")
    assert config["checkpoint"]["minutes"] == 2
    assert config["names"]["distiller"] == "kd"


def test_a_tables_defaults_can_be_shown() -> None:
    answer = process("experiment=table7", "--cfg", "job")
    assert answer.code == 0, answer.error
    assert "MCLD" in answer.out
    assert "name: table7" in answer.out
