"""The experiments of the papers' tables: what they run, and that all of it can be composed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import harness
from distill import zoo
from distill.analysis import paper
from distill.errors import UserError
from distill.record import variant
from distill.sweep.jobs import Job
from distill.sweep.rows import expand
from distill.sweep.table import then

FOLDER = harness.CONF / "experiment"
TABLES = {path.stem: table for path in sorted(FOLDER.glob("*.yaml")) if (table := harness.yaml(path).get("table"))}
RECORDS = json.loads((harness.ROOT / "src/distill/analysis/paper_tables.json").read_text())["records"]
OFFERED = {
    "data": {path.stem for path in (harness.CONF / "data").glob("*.yaml")},
    "student": {entry.name for entry in zoo.CATALOGUE},
    "teacher": {entry.name for entry in zoo.CATALOGUE} | {"none"},
}


def runs(name: str, *given: str) -> list[list[str]]:
    table = TABLES[name]
    return expand(table["rows"], table.get("each", ""), given, loader=None)


def offered(words: list[str]) -> bool:
    """Whether networks and data of a run are there."""
    return all(value in OFFERED[key] for key, _, value in (w.partition("=") for w in words) if key in OFFERED)


def methods() -> dict[str, list[str]]:
    """One run for each way in which methods are said in any of them."""
    found: dict[str, list[str]] = {}
    for name in TABLES:
        for words in runs(name):
            if offered(words):
                said = [word for word in words if not word.startswith(("teacher=", "student=", "seed="))]
                found.setdefault(" ".join(said), words)
    return found


def test_every_table_of_the_paper_has_one():
    assert {table.get("number") for table in TABLES.values()} >= set(range(1, 12))
    assert all(table["name"] == name for name, table in TABLES.items())


@pytest.mark.parametrize("name", TABLES)
def test_its_networks_and_data_are_offered(name):
    for words in runs(name):
        if not offered(words):
            pytest.skip(f"a network or data set of {' '.join(words)} is not there yet")
        assert {word.partition("=")[0] for word in words} >= {"teacher", "student", "distiller", "seed"}


@pytest.mark.parametrize("said", methods())
def test_each_method_of_them_composes(said):
    composes(methods()[said])


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_each_run_of_it_composes(name):
    for words in runs(name, "seed=1"):
        if offered(words):
            composes(words)


def composes(words: list[str]) -> None:
    config = harness.configure(*words)
    said = dict(word.split("=", 1) for word in words)
    assert config["seed"] == int(said["seed"])
    said["data"] = said.get("data", "cifar100").removesuffix("_vit")  # the same images, seen otherwise
    assert {**config["names"], **said}.items() >= config["names"].items()


def test_many_runs_need_m():
    with pytest.raises(UserError, match=r"^experiment=table7 is a list of runs: add -m to carry them out\.$"):
        harness.configure("experiment=table7")


@pytest.mark.parametrize("name", TABLES)
def test_it_says_how_many_runs_it_has(name):
    said = re.search(r"^# Cost: (\d+|ten) runs", (FOLDER / f"{name}.yaml").read_text(), re.MULTILINE)
    assert said
    expected = 10 if said[1] == "ten" else int(said[1])
    assert expected == len(runs(name)) * (10 if TABLES[name]["kind"] == "search" else 1)


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if "number" in table])
def test_it_has_a_run_for_every_number_of_the_paper(name):
    """And no other, but for students alone that the paper prints elsewhere."""
    table = TABLES[name]
    made = [as_printed(words) for words in runs(name)]
    number = [record for record in RECORDS if record["table"] == table["number"] and record["student"]]
    wanted = []
    for record in number:
        found = [run for run in made if fits(run, record)]
        assert len(found) == 3, record  # seeds
        wanted += found
    assert [run for run in made if run not in wanted and run["method"] != "none"] == []


@pytest.mark.parametrize("name", TABLES)
def test_what_follows_it_is_named_without_gaps(name):
    assert not PLACES.search(following(name))


def test_what_follows_names_the_runs():
    few = ("teacher=resnet56", "student=resnet20", "seed=0", "recipe.epochs=3")
    chosen = "--teacher resnet56 --student resnet20 --epochs 3"
    picture = f"python scripts/figures.py table7 {chosen}"
    assert following("table7", *few) == f"Now: python scripts/table.py --table 7 {chosen}; {picture}\n"
    assert following("table2", "seed=0") == "Now: python scripts/table.py --table 2 \n"
    assert following("figure4", "distiller=kd") == "Now: python scripts/figures.py figure4 runs/0\n"
    probes = following("table8", *few, "teacher.weights=a/b.pth", "distiller=none,mcld")
    assert "'networks=[runs/0,runs/1,resnet56:a/b.pth]'" in probes
    assert probes.endswith(f"; python scripts/table.py --table 8 {chosen}\n")


PLACES = re.compile(r"\{(options|folders|list|teacher)\}")


def following(name: str, *given: str) -> str:
    """What is printed after the runs of a table."""
    made = [dict(word.split("=", 1) for word in words) for words in runs(name, *given)]
    jobs = [Job([], {"names": names}, None, Path(f"runs/{place}")) for place, names in enumerate(made)]
    master = OmegaConf.create({"table": TABLES[name], "hydra": {"sweep": {"dir": "outputs"}}})
    return then(master, jobs, given)


def as_printed(words: list[str]) -> dict[str, Any]:
    said = dict(word.split("=", 1) for word in words)
    method = said["distiller"].replace("_", "+")
    method = f"dot+{method}" if said.get("optimizer") == "dot" else method
    terms = {
        term: said.get(f"distiller.{term}_weight") != "0" and method == "mcld"
        for term in ("instance", "sample", "category")
    }
    return {**said, "method": method, "terms": terms}


def fits(run: dict[str, Any], record: dict[str, Any]) -> bool:
    method = paper.METHODS[record["method"]]
    if "instance" in record:  # Table 7
        method = "none" if record["method"] == "student_baseline" else "mcld"
        if run["terms"] != {term: record[term] for term in run["terms"]}:
            return False
    teacher = "none" if method == "none" or record["teacher"] is None else record["teacher"]
    epochs = record.get("epochs") or paper.EPOCHS[run.get("data", "cifar100")]
    trained = int(run.get("recipe.epochs", paper.EPOCHS[run.get("data", "cifar100")]))
    return (
        run["method"] == method
        and trained == epochs
        and printed_as(run["teacher"], teacher)
        and printed_as(run["student"], record["student"])
    )


def printed_as(ours: str, theirs: str) -> bool:
    papers = {name for entry in zoo.CATALOGUE if entry.name == ours for name in entry.papers}
    # networks that another change brings are named after what the papers call them
    return theirs in {ours, *papers} or ours.removeprefix("imagenet_").lower() == theirs.lower()


def test_a_run_of_a_table_is_the_run_that_one_would_type():
    words = runs("table2", "networks=resnet56-resnet20", "distiller=mcld", "seed=0")
    assert words == [["seed=0", "teacher=resnet56", "student=resnet20", "distiller=mcld"]]
    assert variant(words[0]) == ""


def test_the_ablation_switches_terms_off_and_nothing_else():
    variants = {variant(words) for words in runs("table7")}
    assert len(variants) == 8
    assert "" in variants  # the student alone
    assert all("distiller.ce_weight=0" in text for text in variants - {""})
    assert {word.split("=")[1] for text in variants for word in text.split()} == {"0"}


def test_its_overrides_are_the_users():
    words = runs("table7", "teacher=resnet56", "student=resnet20", "recipe.epochs=3", "seed=0")
    assert len(words) == 8
    assert all({"student=resnet20", "recipe.epochs=3", "seed=0"} <= set(line) for line in words)
    assert sum("teacher=resnet56" in line for line in words) == 7


def test_the_teachers_are_those_without_public_weights():
    def values(key: str, *names: str) -> set[str]:
        said = [word for name in names for words in runs(name) for word in words]
        return {word.removeprefix(key) for word in said if word.startswith(key)}

    wide = {teacher for teacher in values("teacher=", "table10", "table11") if teacher.startswith("wrn")}
    assert values("student=", "teachers") == wide - {"wrn_40_2"}


@pytest.mark.parametrize("name", TABLES)
def test_it_opens_with_command_and_numbers(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert f"python src/train.py -m experiment={name}" in text
    assert "Number" in text
