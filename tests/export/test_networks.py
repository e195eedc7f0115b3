"""Every network becomes a program and an ONNX graph that answer as it does, in batches of any size."""

from pathlib import Path

import pytest
import torch
from torch import nn

import harness
from distill.build import build_network
from distill.export.check import Reference
from distill.export.formats import FORMATS, Classifier, Content
from distill.models.adapters import TimmNetwork
from distill.models.network import Network
from distill.zoo import CATALOGUE
from small_pairs import CLASSES, FAMILIES


def assert_exports(network: Network, folder: Path, *, size: int) -> None:
    network.eval()
    content = Content(deployed=network, graph=network, size=size, opset=20, metadata={}, about={"of": "a test"})
    torch.manual_seed(0)
    reference = Reference(Classifier(network), torch.rand(5, 3, size, size), batches=[1, 3, 5])
    assert reference.largest > 1e-3
    for name in ("torch_export", "onnx"):
        of = FORMATS[name]
        of.write(content, folder / of.file)
        found = reference.compared(of.load(folder / of.file), what=name, tolerance=1e-4)
        assert [row["batch"] for row in found] == [1, 3, 5]


def wild(network: Network, *, size: int) -> Network:
    """Statistics and weights that let no mistake pass as an identity, and logits of some size."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        network.train()(torch.rand(8, 3, size, size))
    return network


# resnet's are exported in the tests of the command, and below
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("resnet", "wide")])
def test_every_family(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert_exports(wild(FAMILIES[family](), size=32), tmp_path, size=32)


@pytest.mark.parametrize("own", [24, pytest.param(40, marks=pytest.mark.slow)])
def test_resizing_is_in_the_graph(own: int, tmp_path: Path) -> None:
    """Also with the filter against aliasing, where images are made smaller."""
    torch.manual_seed(0)
    network = FAMILIES["resnet"]()
    network.normalise(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4], input_size=own)
    assert_exports(wild(network, size=32), tmp_path, size=32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "mobilenetv3_small_050"])
def test_timms(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TimmNetwork(name=name, pretrained=False, drop_path=None, num_classes=CLASSES)
    network.normalise(mean=[0.5] * 3, std=[0.5] * 3, input_size=network.preferred()[2])
    nn.init.normal_(network.classifier.weight, std=0.5)
    assert_exports(wild(network, size=32), tmp_path, size=32)


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE])
def test_every_network_of_the_catalogue(name: str, tmp_path: Path) -> None:
    node = harness.configure(f"student={name}")["student"]
    network = build_network(node, what="student", num_classes=100, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    assert_exports(wild(network, size=32), tmp_path, size=32)
