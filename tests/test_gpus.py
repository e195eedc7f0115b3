"""GPUs dealt out to processes; none is needed to see who would get which."""

import subprocess
import sys

import pytest

from distill import gpus

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
WORKER = f"""
import os, sys
from distill.gpus import take_gpu
take_gpu({{"_target_": {JOBLIB!r}, "n_jobs": 3}})
take_gpu({{"_target_": {JOBLIB!r}, "n_jobs": 3}})
print(os.environ["CUDA_VISIBLE_DEVICES"], "torch" in sys.modules, flush=True)
sys.stdin.read()
"""


def test_each_process_holds_one_as_long_as_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5")

    def worker() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=None
        )

    def answer(process: "subprocess.Popen[str]") -> str:
        assert process.stdout
        return process.stdout.readline().strip()

    def end(process: "subprocess.Popen[str]") -> None:
        process.communicate("")

    workers = [worker() for _ in range(3)]
    try:
        got = {process: answer(process) for process in workers}
        assert sorted(got.values()) == ["4 False", "4 False", "GPU-5 False"]
        other = next(process for process in workers if got[process].startswith("GPU-5"))
        end(other)
        workers.append(worker())
        assert answer(workers[-1]) == "GPU-5 False"  # its place is free again
    finally:
        for process in workers:
            if process.poll() is None:
                end(process)


def test_other_launchers_leave_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    gpus.take_gpu({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"})
    assert gpus.visible() == ["4", "5"]


@pytest.mark.parametrize(("named", "expected"), [("", []), ("3", ["3"]), ("0,1,", ["0", "1"])])
def test_what_is_visible_is_what_the_variable_says(named: str, expected: list[str]) -> None:
    assert gpus.visible({"CUDA_VISIBLE_DEVICES": named}) == expected


def test_without_the_variable_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "GPU 0: NVIDIA X (UUID: GPU-1)\n  MIG 1g Device 0: (UUID: MIG-2)\nGPU 1: NVIDIA X (UUID: GPU-3)\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=listed))
    assert gpus.visible({}) == ["0", "1"]

    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    assert gpus.visible({}) == []
