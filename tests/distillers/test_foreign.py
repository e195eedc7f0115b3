"""Methods on features with networks of timm and torchvision: they find what they read, or say what would work."""

import copy
from functools import cache

import pytest
from hydra.utils import get_class

import harness
from distill.bench import grid
from distill.build import build_network, freeze
from distill.distillers.connectors import would_work
from distill.errors import UserError
from distill.models.network import Network

SIZE = 64
METHODS = [
    name
    for name in harness.METHODS
    if get_class(harness.yaml(harness.CONF / "distiller" / f"{name}.yaml")["_target_"]).needs == "features"
]
# teacher and student, and the methods of features that do not work with them
PAIRS = {
    ("timm test_resnet", "timm mobilenetv3_small_050"): {"catkd"},  # a layer between pooling and classifier
    ("timm test_convnext", "torchvision shufflenet_v2_x0_5"): {"catkd", "simkd"},  # a norm there
    ("torchvision resnet18", "timm test_efficientnet"): set(),
    ("timm test_vit", "timm test_efficientnet"): set(METHODS) - {"crd", "pkt", "rkd"},  # no maps, but what is pooled
}
# of names that people use
REAL = {
    ("timm resnet18", "timm mobilenetv3_small_100"): {"catkd"},
    ("timm resnet18", "timm efficientnet_b0"): set(),
    ("torchvision resnet34", "timm convnext_tiny"): {"catkd"},
    ("timm convnext_tiny", "torchvision mobilenet_v2"): {"catkd", "simkd"},
    ("resnet32x4", "torchvision resnet18"): set(),
}


@cache
def network(words: str, what: str) -> Network:
    group, *name = words.split()
    config = harness.configure(f"{what}={group}", *(f"{what}.name={n}" for n in name))
    built = build_network(config[what], what=what, num_classes=100, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    return freeze(built) if what == "teacher" else built


@cache
def node(method: str):
    return harness.configure(f"distiller={method}", "teacher=resnet8", "student=resnet8")["distiller"]


def check(method: str, pair: tuple[str, str], refused: set[str]) -> None:
    teacher, student = network(pair[0], "teacher"), copy.deepcopy(network(pair[1], "student"))
    how = {"size": SIZE, "rows": 4, "samples": 200, "count_of": 2}
    if method not in refused:
        assert grid.take(node(method), teacher, student, **how)[0] == ""
        return
    works = would_work(student.shapes(SIZE), teacher.shapes(SIZE))
    assert set(METHODS) & set(works) == set(METHODS) - refused
    with pytest.raises(UserError, match=r"which this \w+ does not show: .* works with these networks \(") as caught:
        grid.take(node(method), teacher, student, **how)
    assert f"({', '.join(works)})." in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
def test_a_method_works_or_says_which_ones_would(method, pair):
    check(method, pair, PAIRS[pair])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", REAL, ids=" to ".join)
def test_with_well_known_networks(method, pair):
    check(method, pair, REAL[pair])
