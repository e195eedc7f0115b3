"""Look-ups of the paper's numbers, each read off its page."""

import json
from importlib.resources import files

import pytest

from distill import zoo
from distill.analysis import paper
from distill.analysis.paper import ablation, cells, published


@pytest.mark.parametrize(
    ("teacher", "student", "method", "top1"),
    [
        ("resnet32x4", "resnet8x4", "mcld", 77.89),
        ("resnet56", "resnet20", "mcld", 71.41),
        ("resnet32x4", "shufflenetv2", "mcld", 78.65),
        ("cifar_resnet50", "mobilenetv2", "mcld", 72.41),
        ("vgg13", "mobilenetv2", "mcld", 71.22),
        ("wrn_16_4", "wrn_16_2", "mcld", 76.47),
        ("wrn_40_2", "resnet8x4", "kd", 73.07),
        ("wrn_40_2", "wrn_40_1", "dkd", 74.81),
        ("wrn_40_2", "wrn_40_1", "reviewkd", 75.09),
        ("resnet32x4", "resnet8x4", "simkd", 78.08),
        ("resnet32x4", "resnet8x4", "catkd", 76.91),
        ("resnet32x4", "resnet8x4", "ctkd", 76.67),
        ("vgg13", "mobilenetv2", "fitnet", 64.16),
        ("resnet110", "resnet20", "at", 70.65),
        ("resnet32x4", "resnet8x4", "lskd+dkd", 76.79),
        ("resnet32x4", "resnet8x4", "dkd_lskd", 76.79),
        ("resnet32x4", "resnet8x4", "lskd+mlkd", 66.51),
        ("none", "resnet20", "none", 69.06),
        ("none", "resnet8x4", "none", 72.50),
        ("none", "resnet56", "none", 72.34),
        ("resnet110", "resnet20", "teacher", 74.31),
    ],
)
def test_known_cells(teacher, student, method, top1):
    assert published("cifar100", teacher, student, method) == top1


@pytest.mark.parametrize(
    ("data", "teacher", "student", "method"),
    [
        ("cifar100", "resnet32x4", "resnet8x4", "rld"),
        ("cifar100", "resnet32x4", "resnet8x4", "dot"),
        ("cifar100", "resnet44", "resnet20", "mcld"),
        ("cifar100", "mine", "resnet20", "mcld"),
        ("cifar100", "none", "resnet8", "none"),
        ("digits", "resnet56", "resnet20", "mcld"),
    ],
)
def test_a_cell_the_paper_does_not_have_is_none(data, teacher, student, method):
    assert published(data, teacher, student, method) is None


def test_where_tables_disagree_the_first_counts_and_both_are_there():
    found = cells("cifar100", "resnet110", "resnet20", "mcld")
    assert [(cell.table, cell.top1) for cell in found] == [(2, 71.47), (6, 71.36)]
    assert published("cifar100", "resnet110", "resnet20", "mcld") == 71.47


def test_longer_training_stands_behind_the_papers_own_length():
    found = cells("cifar100", "resnet32x4", "resnet8x4", "lskd+mlkd")
    assert [(cell.table, cell.top1, cell.epochs) for cell in found] == [
        (2, 66.51, 240),
        (3, 66.51, 240),
        (3, 71.21, 480),
    ]
    assert all(cell.reproduced for cell in found)


def test_a_linear_probe_is_no_distillation():
    pair = ("resnet32x4", "resnet8x4")
    assert published("stl10", *pair, "mcld") is None
    assert published("stl10", *pair, "mcld", probe=True) == 70.61
    assert published("tiny_imagenet", *pair, "none", probe=True) == 34.75
    assert published("tiny_imagenet", "resnet110", "resnet20", "teacher", probe=True) == 26.77
    assert published("stl10", "resnet110", "resnet110", "teacher", probe=True) == 63.99
    assert published("stl10", "none", "resnet8x4", "none", probe=True) == 65.18  # of no pair: it learned alone
    assert published("stl10", "resnet110", "resnet8x4", "mcld", probe=True) is None
    assert published("cifar100", *pair, "mcld", probe=True) is None


def test_a_printed_name_means_another_network_on_another_data_set():
    pair = ("imagenet_resnet34", "imagenet_resnet18")
    assert published("imagenet", *pair, "mcld") == 71.66
    assert published("imagenet", *pair, "mcld", metric="top5") == 90.37
    assert published("imagenet", "none", "imagenet_resnet18", "none") == 69.75
    assert published("imagenet", "imagenet_resnet50", "mobilenetv1", "mcld") == 72.98
    assert published("imagenet", "imagenet_resnet34", "cifar_resnet18", "mcld") is None
    assert published("cifar100", "imagenet_resnet50", "mobilenetv2", "mcld") is None


def test_ablation_is_table_7():
    flags = ("instance", "sample", "category")
    rows = {"I": 77.37, "S": 77.42, "C": 74.88, "IS": 77.62, "IC": 77.15, "SC": 77.05, "ISC": 77.89, "": 72.50}
    for letters, top1 in rows.items():
        assert ablation(**{flag: flag[0].upper() in letters for flag in flags}) == top1


def test_every_printed_method_has_a_name_here():
    content = json.loads(files("distill.analysis").joinpath("paper_tables.json").read_text())
    assert {record["method"] for record in content["records"]} == set(paper.METHODS)


@pytest.mark.parametrize(("data", "tables", "count"), [("cifar100", (1, 2), 210), ("imagenet", (5,), 22)])
def test_every_row_is_found_under_our_names(data, tables, count):
    content = json.loads(files("distill.analysis").joinpath("paper_tables.json").read_text())
    rows = [r for r in content["records"] if r["dataset"] == data and r["table"] in tables]
    rows = [r for r in rows if r["teacher"] and r["student"]]
    assert len(rows) == count
    for r in rows:
        names = [zoo.by_paper(r[role], data).name for role in ("teacher", "student")]
        found = cells(data, *names, paper.METHODS[r["method"]])
        assert (r["table"], r["top1"]) in [(cell.table, cell.top1) for cell in found]
