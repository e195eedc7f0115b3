"""What can be chosen: help, wrong names, and the Tab key."""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from command_line import assert_one_sentence, here, process
from distill.zoo import CATALOGUE
from harness import CONF, ROOT

GROUPS = ("data", "teacher", "student", "distiller", "recipe", "optimizer", "trainer", "logger", "experiment")


@pytest.fixture
def line(monkeypatch, capsys):
    return partial(here, monkeypatch, capsys)


def choices(group: str) -> set[str]:
    """What the files and the catalogue offer."""
    files = {path.stem for path in (CONF / group).glob("*.yaml")}
    networks = (
        {entry.name for entry in CATALOGUE} | {"timm", "torchvision"} if group in ("teacher", "student") else set()
    )
    return files | networks


def completions(text: str) -> list[str]:
    """What Tab offers after `python src/train.py TEXT`, by the protocol of Hydra's shell function."""
    whole = f"python src/train.py {text}"
    answer = process("-sc", "query=bash", COMP_LINE=whole, COMP_POINT=str(len(whole)))
    assert (answer.code, answer.error) == (0, "")
    return answer.out.split()


def test_help_lists_every_choice_of_every_group(line):
    answer = line("--help")
    assert answer.code == 0
    assert "python src/train.py distiller=mcld teacher=resnet32x4 student=resnet8x4" in answer.out
    listed = dict(re.findall(r"^(\w+): (.*)$", answer.out.split("== Config ==")[0], flags=re.MULTILINE))
    assert {group: set(listed[group].split(", ")) for group in GROUPS} == {group: choices(group) for group in GROUPS}


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "recipe"])
def test_a_wrong_name_is_answered_with_the_valid_ones(group, line):
    answer = line(f"{group}=nonsense")
    assert_one_sentence(answer)
    said = re.fullmatch(rf"{group}=nonsense is unknown: choose one of (.*)\.\n", answer.error)
    assert said is not None
    assert set(said[1].split(", ")) == choices(group)


def test_the_names_that_look_alike_come_first(line):
    answer = line("student=resnet8x")
    assert answer.error.startswith("student=resnet8x is unknown: choose one of resnet8x4, resnet8, ")


def test_who_looks_for_a_bug_gets_hydras_own_error():
    answer = process("data=nonsense", HYDRA_FULL_ERROR="1")
    assert answer.code == 1
    assert "MissingConfigException" in answer.error


@pytest.mark.parametrize("group", ["student", "teacher", "distiller", "data"])
def test_tab_completes_names(group):
    assert set(completions(f"{group}=")) == {f"{group}={name}" for name in choices(group)}


def test_tab_completes_the_rest_of_a_name():
    assert completions("teacher=resnet32x4 student=resnet8x") == ["student=resnet8x4"]


def test_tab_completes_keys_of_what_was_chosen():
    assert completions("distiller=kd student=resnet20 distiller.te") == ["distiller.temperature="]


def test_tab_offers_every_group():
    assert {f"{group}=" for group in GROUPS} <= set(completions(""))


@pytest.mark.parametrize("words", [("-sc", "query=bash"), ("--help",)])
@pytest.mark.parametrize("script", [path.name for path in sorted((ROOT / "src").glob("*.py"))])
def test_neither_tab_nor_help_imports_torch(words, script):
    line = [sys.executable, "-X", "importtime", str(ROOT / "src" / script), *words]
    done = subprocess.run(line, env={"COMP_LINE": "python src/train.py distiller."}, capture_output=True, text=True)
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
    assert done.returncode == 0
    assert {"hydra", "distill.zoo"} <= imported
    assert not {"torch", "numpy", "pytorch_lightning", "timm"} & imported


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("script", ["train", "eval", "probe", "export"])
def test_bash_itself_completes(script):
    """The function that `-sc install=bash` defines accepts our scripts."""
    commands = f"""
        PATH={Path(sys.executable).parent}:$PATH
        eval "$(python src/{script}.py -sc install=bash)"
        COMP_LINE="python src/{script}.py student=resnet8"; COMP_POINT=${{#COMP_LINE}}; COMP_CWORD=2
        hydra_bash_completion
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", commands], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["student=resnet8", "student=resnet8x4"]
