"""Every method takes real steps on every pair of the papers' tables; `scripts/grid.py` makes a table of it."""

import pytest

import harness
from distill.bench import grid
from distill.bench.grid import Pair

ROWS, SAMPLES = 4, 200
PAIRS = grid.pairs()
# stages of teacher and student: three and three, four and four, three and four, four and three
REPRESENTATIVE = (
    ("resnet56", "resnet20"),
    ("vgg13", "mobilenetv2"),
    ("wrn_40_2", "mobilenetv2"),
    ("vgg13", "wrn_16_2"),
    ("resnet32x4", "shufflenetv2"),
)
OF_TABLE_5 = [("imagenet_resnet34", "imagenet_resnet18"), ("imagenet_resnet50", "mobilenetv1")]
READ_THE_MOST = ["ofd", "reviewkd"]  # stages before and after their last ReLU, norms, pooled features


def cell(method: str, pair: Pair) -> grid.Cell:
    teacher, student = pair
    node = harness.configure(f"distiller={method}", f"teacher={teacher}", f"student={student}")["distiller"]
    return grid.steps(method, node, pair, rows=ROWS, samples=SAMPLES, count_of=2)


@pytest.mark.parametrize("method", harness.METHODS)
@pytest.mark.parametrize("pair", REPRESENTATIVE, ids="-".join)
def test_a_pair_of_each_shape(method: str, pair: Pair) -> None:
    assert cell(method, pair).trouble == ""


@pytest.mark.parametrize("method", READ_THE_MOST)
@pytest.mark.parametrize("pair", OF_TABLE_5, ids="-".join)
def test_imagenets_pairs(method: str, pair: Pair) -> None:
    assert cell(method, pair).trouble == ""


REST = [
    (method, pair)
    for pair in PAIRS
    for method in harness.METHODS
    if pair not in REPRESENTATIVE and not (pair in OF_TABLE_5 and method in READ_THE_MOST)
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "pair"), REST, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_every_pair(method: str, pair: Pair) -> None:
    assert cell(method, pair).trouble == ""


def test_the_tables_name_these_pairs() -> None:
    assert len(PAIRS) == 26 + 2
    assert set(REPRESENTATIVE) <= set(PAIRS)
    assert PAIRS[26:] == OF_TABLE_5
