"""The entry scripts, run as a user does."""

import logging
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import ROOT


@dataclass(frozen=True)
class Answer:
    """What a command line gave back."""

    code: int
    out: str
    error: str


def process(*words: str, script: str = "train", **environment: str) -> Answer:
    """A process of its own: about half a second, and eight more once a job imports torch."""
    line = [sys.executable, str(ROOT / "src" / f"{script}.py"), *words]
    # neither ranks of this test run nor a user's habits
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "HYDRA_FULL_ERROR")}
    done = subprocess.run(line, env={**inherited, **environment}, capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str, script: str = "train"
) -> Answer:
    """The same in this process, for what ends before a job begins, or soon after."""
    path: Path = ROOT / "src" / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr()
    return Answer(int(end.value.code or 0), printed.out, printed.err)


def carried_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> Answer:
    """A command line to its end in this process: without the seconds that torch takes to import."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    monkeypatch.setattr(sys, "argv", [str(ROOT / "src/train.py"), *words])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    code: object = 0
    capsys.readouterr()
    try:
        runpy.run_path(str(ROOT / "src/train.py"), run_name="__main__")
    except SystemExit as end:
        code = end.code
    finally:  # Hydra's write to this test's streams
        root.level, root.handlers = before
    printed = capsys.readouterr()
    return Answer(int(str(code or 0)), printed.out, printed.err)


def assert_one_sentence(answer: Answer) -> None:
    """A refusal: one line on stderr, no traceback, exit code 1."""
    assert answer.code == 1
    assert "Traceback" not in answer.out + answer.error
    assert answer.error.count("\n") == 1, answer.error
    assert answer.error.endswith((".\n", "?\n"))
