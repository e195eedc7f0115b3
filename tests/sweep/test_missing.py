"""What a table says is missing is what its experiment would train."""

from pathlib import Path

import pytest
import yaml

from distill.analysis.sheet import fill
from distill.sweep.rows import expand

EXPERIMENTS = Path(__file__).parents[2] / "conf" / "experiment"


def runs(rows: list[str], each: str) -> set[frozenset[str]]:
    """The words of each run, but for the data set."""
    expanded = expand(rows, each, [], loader=None)
    return {frozenset(word for word in words if not word.startswith("data=")) for words in expanded}


@pytest.mark.parametrize("table", [1, 2, 3, 4, 5, 6, 7, 10, 11])
def test_the_parts_of_an_empty_table_are_its_experiment(table: int) -> None:
    content = yaml.safe_load((EXPERIMENTS / f"table{table}.yaml").read_text())["table"]
    whole, *parts = fill(table, []).missing
    assert whole == f"python src/train.py -m experiment=table{table}"
    assert runs([part.split(" -m ", 1)[1] for part in parts], "") == runs(content["rows"], content["each"])
