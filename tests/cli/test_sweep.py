"""Many runs from one command line: a folder for each, named by what ran, and nothing of one in another."""

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from command_line import process
from distill.command import LONGEST_NAME, folder_name
from harness import RANDOM_TEACHER, SMALL, yaml


def results(folder: Path) -> dict[str, dict[str, object]]:
    """Every result.json of a sweep, by the name of its folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}


def test_each_job_has_its_folder_and_a_failed_one_stops_no_other(tmp_path):
    sweep = ("distiller=none,kd", "recipe.epochs=0,1", f"hydra.sweep.dir={tmp_path}")
    answer = process("-m", *SMALL, *RANDOM_TEACHER, *sweep)
    assert answer.code == 1  # two of the four jobs failed
    assert "Traceback" not in answer.out + answer.error
    assert answer.error.count("recipe.epochs=0 must be a whole number of at least 1.") == 2
    found = results(tmp_path)
    assert [name[:2] for name in found] == ["2_", "3_"]
    for name, method in zip(found, ("none", "kd"), strict=True):
        assert f"_distiller-{method}_" in name
        assert found[name]["names"]["distiller"] == method
        assert found[name]["epochs"] == 1
        assert yaml(tmp_path / name / "config.yaml")["names"]["distiller"] == method
        assert len((tmp_path / name / "metrics.csv").read_text().splitlines()) == 2
    one, other = found.values()
    assert one["last"] != other["last"]


@pytest.mark.slow
def test_several_processes_per_job_train_that_jobs_method(tmp_path):
    """A launcher that ran the command line again would give every rank the whole sweep."""
    sweep = ("distiller=none,kd", "recipe.epochs=1", f"hydra.sweep.dir={tmp_path}")
    ranks = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    answer = process("-m", *SMALL, *RANDOM_TEACHER, *ranks, *sweep)
    assert answer.code == 0, answer.error
    found = results(tmp_path)
    assert [result["names"]["distiller"] for result in found.values()] == ["none", "kd"]
    terms = {"none": ["ce"], "kd": ["ce", "kd"]}
    for name, result in found.items():
        header = (tmp_path / name / "metrics.csv").read_text().splitlines()[0].split(",")
        trained = [column.removeprefix("train/") for column in header if column.startswith("train/")]
        assert trained == ["loss", *terms[result["names"]["distiller"]], "top1"]
    assert len(list(tmp_path.glob("**/result.json"))) == 2  # no rank began a sweep of its own


# ---------------------------------------------------------------------- names

NAMES = {
    "distiller=kd,seed=1": "distiller-kd_seed-1",
    "recipe.lr=1e-3": "recipe.lr-1e-3",
    "+student.widths=[4, 8]": "+student.widths-_4_8",
    "data.root=/some where/images": "data.root-_some_where_images",
    "student.name=vit_tiny:a|b*?<>\"'": "student.name-vit_tiny_a_b",
    "data.root=../up": "data.root-.._up",
    "": "default",
    "..": "default",
    "label=été": "label-_t",
}


@pytest.mark.parametrize("text", NAMES)
def test_a_folder_is_named_by_what_ran(text):
    assert folder_name(text) == NAMES[text]


@pytest.mark.parametrize("text", [*NAMES, "x=" + "a/b=c," * 99])
def test_the_name_can_be_given_back_as_it_is(text):
    """As in `resume=outputs/sweeps/.../0_NAME`."""
    path = f"outputs/sweeps/2025-01-01_00-00-00/0_{folder_name(text)}"
    override = OverridesParser.create().parse_override(f"resume={path}")
    assert (override.key_or_group, override.value()) == ("resume", path)


def test_long_names_are_cut_and_stay_different():
    one, other = (folder_name("distiller=kd," + "seed=1," * 50 + end) for end in ("a=1", "a=2"))
    assert len(one) == len(other) == LONGEST_NAME
    assert one.startswith("distiller-kd_seed-1_")
    assert one != other
    assert one[: LONGEST_NAME - 9] == other[: LONGEST_NAME - 9]
