"""What the README shows works as it stands there."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import harness
from distill import command
from distill.analysis.store import find_results
from distill.analysis.table import group
from distill.run import config as settings

README = (harness.ROOT / "README.md").read_text()


def blocks(language: str, after: str) -> list[str]:
    """The fenced blocks of a language behind a heading."""
    section = README.split(f"\n{after}\n", 1)[1]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def test_the_smallest_method_of_ones_own_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, yaml = blocks("python", "### Write your own")[0], blocks("yaml", "### Write your own")[0]
    (tmp_path / "mine/distiller").mkdir(parents=True)
    (tmp_path / "mine/mimic.py").write_text(code)
    (tmp_path / "mine/distiller/mimic.yaml").write_text(yaml)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "mine"), *sys.path])
    place = f"hydra.searchpath=[file://{tmp_path / 'mine'}]"
    config = harness.configure(place, *harness.SMALL, *harness.RANDOM_TEACHER, "distiller=mimic", "recipe.epochs=1")
    harness.execute(config, tmp_path / "run")
    header, row = (line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines())
    values = dict(zip(header, map(float, row), strict=True))
    assert values["train/mimic"] > 0
    assert values["train/loss"] == pytest.approx(values["train/ce"] + values["train/mimic"])


def test_the_table_of_methods_is_that_of_the_code() -> None:
    script = harness.script("methods")
    state = torch.random.get_rng_state()
    table = script.table(script.measured())
    torch.random.set_rng_state(state)
    assert script.written(README, table) == README, "run `python scripts/methods.py --write README.md`"


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^python src/probe\.py ([^\n#]*)", README, re.MULTILINE))))
def test_its_probes_compose(line: str) -> None:
    config = settings.resolve(command.composed(harness.CONF, "probe", shlex.split(line)))
    assert config["networks"] or config["student"]


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^python src/train\.py (?!-)([^\n#]*)", README, re.MULTILINE))))
def test_its_commands_compose(line: str) -> None:
    words = line.split()
    if "-cd" in words or any(word.startswith("resume=") for word in words):
        return  # a folder of the reader's
    harness.configure(*words)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("RESULTS.md", []),
        *(
            (
                f"outputs/published/reports/table{n}.md",
                f"--table {n} --teacher resnet56 --student resnet20 --epochs 3".split(),
            )
            for n in (7, 8)
        ),
    ],
)
def test_what_is_kept_is_what_the_evidence_says(
    file: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(harness.ROOT)
    harness.script("table").main(["outputs/published", *words, "--output", str(tmp_path / "now.md")])
    assert (tmp_path / "now.md").read_text() == (harness.ROOT / file).read_text(), "run `make results`"


def test_the_numbers_it_tells_of_are_those_of_the_evidence() -> None:
    results, _ = find_results((harness.ROOT / "outputs/published/cifar100").glob("*-resnet20/3_epochs"))
    last = {row.label: next(run.last.top1 for run in row.runs if run.seed == 0) for row in group(results)[0]}
    section = README.split("\n## Measured so far\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(.*?)` \| (.*?) \| `(.*?)` \| (.*?) \|", section, re.MULTILINE)
    assert len(rows) == 6
    told = [pair for row in rows for pair in (row[:2], row[2:])] + re.findall(
        r"`([^`]*)` (?:has )?(\d\d\.\d\d)", section
    )
    assert len(told) > 12
    for label, number in told:
        assert f"{last[label]:.2f}" == number, label
