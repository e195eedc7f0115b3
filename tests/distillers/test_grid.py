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
# channels of stages; pooled features have as many as the last
RESNET18, MOBILENETV1, RESNET50 = (64, 128, 256, 512), (128, 256, 512, 1024), (256, 512, 1024, 2048)


def fusions(student: tuple[int, ...], teacher: tuple[int, ...], middle: int) -> int:
    """Parameters of ReviewKD by the shapes in megvii-research/mdistiller's configurations for ImageNet."""
    inputs, outputs = (sum(channels) + channels[-1] for channels in (student, teacher))
    attention = 4 * (2 * 2 * middle + 2)
    return middle * inputs + 5 * 2 * middle + 9 * middle * outputs + 2 * outputs + attention


# the two methods that read the most (stages before and after their last ReLU, norms, pooled features) and their extra
# parameters: OFD's are a 1 x 1 convolution and a norm per stage
EXTRA = {
    ("ofd", OF_TABLE_5[0]): sum(c * c + 2 * c for c in RESNET18),
    ("ofd", OF_TABLE_5[1]): sum(s * t + 2 * t for s, t in zip(MOBILENETV1, RESNET50, strict=True)),
    ("reviewkd", OF_TABLE_5[0]): fusions(RESNET18, RESNET18, 512),
    ("reviewkd", OF_TABLE_5[1]): fusions(MOBILENETV1, RESNET50, 256),
}


def name_of(part: str | Pair) -> str:
    return part if isinstance(part, str) else "-".join(part)


def cell(method: str, pair: Pair) -> grid.Cell:
    teacher, student = pair
    node = harness.configure(f"distiller={method}", f"teacher={teacher}", f"student={student}")["distiller"]
    return grid.steps(method, node, pair, rows=ROWS, samples=SAMPLES, count_of=2)


@pytest.mark.parametrize("method", harness.METHODS)
@pytest.mark.parametrize("pair", REPRESENTATIVE, ids="-".join)
def test_a_pair_of_each_shape(method: str, pair: Pair) -> None:
    assert cell(method, pair).trouble == ""


@pytest.mark.parametrize(("method", "pair"), EXTRA, ids=name_of)
def test_imagenets_pairs(method: str, pair: Pair) -> None:
    found = cell(method, pair)
    assert found.trouble == ""
    assert found.extra == EXTRA[method, pair]


REST = [
    (method, pair)
    for pair in PAIRS
    for method in harness.METHODS
    if pair not in REPRESENTATIVE and (method, pair) not in EXTRA
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "pair"), REST, ids=name_of)
def test_every_pair(method: str, pair: Pair) -> None:
    assert cell(method, pair).trouble == ""


def test_the_tables_name_these_pairs() -> None:
    assert len(PAIRS) == 26 + 2
    assert set(REPRESENTATIVE) <= set(PAIRS)
    assert PAIRS[26:] == OF_TABLE_5
