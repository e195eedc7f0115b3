"""The catalogue, and how Hydra offers it."""

import subprocess
import sys
from importlib import import_module
from inspect import signature

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from distill.errors import UserError
from distill.zoo import CATALOGUE, LARGE, SMALL, by_name, by_paper, offer

USES = {"label", "weights", "mean", "std", "input_size", "allow_chance", "keep", "keep_in"}
OF_TEACHER = {"allow_chance": False, "keep": "off", "keep_in": "kept"}

CONFIG = """
defaults:
  - student: resnet8
  - teacher: resnet20
  - _self_
data: {num_classes: 7, mean: [.1, .2, .3], std: [.4, .5, .6]}
names: {data: toy}
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a configuration that has both groups; Hydra's store is put back afterwards."""
    store = ConfigStore.instance()
    before = dict(store.repo)
    (tmp_path / "config.yaml").write_text(CONFIG)
    offer()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        yield
    store.repo = before


def network_of(node):
    values = OmegaConf.to_container(node, resolve=True)
    return instantiate({key: value for key, value in values.items() if key not in USES})


def test_names_are_unique():
    names = [entry.name for entry in CATALOGUE]
    for size in (SMALL, LARGE):
        papers = [name for entry in CATALOGUE if entry.size == size for name in entry.papers if name != entry.name]
        assert len({*names, *papers}) == len(names) + len(papers)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_arguments_are_the_signature(entry):
    module, _, kind = entry.target.rpartition(".")
    parameters = signature(getattr(import_module(module), kind)).parameters.values()
    assert {p.name for p in parameters} == {*entry.arguments, "num_classes"}
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)


# every teacher and student of the MCLD paper's tables on CIFAR-100, STL-10 and Tiny-ImageNet, as mdistiller names them
PAPER = {
    **{name: name for name in ("resnet20", "resnet32", "resnet56", "resnet110", "resnet8x4", "resnet32x4", "vgg8")},
    **{name: name for name in ("vgg13", "wrn_16_2", "wrn_16_4", "wrn_28_2", "wrn_28_4", "wrn_40_1", "wrn_40_2")},
    **{"ResNet50": "cifar_resnet50", "MobileNetV2": "mobilenetv2"},
    **{"ShuffleV1": "shufflenetv1", "ShuffleV2": "shufflenetv2"},
    **{"WRN-40-2": "wrn_40_2", "R32x4": "resnet32x4", "VGG13": "vgg13"},
}


@pytest.mark.parametrize(("paper", "name"), PAPER.items())
def test_knows_the_names_of_papers(paper, name):
    assert by_paper(paper, "cifar100") is by_name(name)


@pytest.mark.parametrize(("paper", "depth"), [("ResNet18", 18), ("ResNet50", 50), ("R50", 50)])
def test_a_papers_resnet_is_another_on_imagenet(paper, depth):
    assert by_paper(paper, "imagenet") is by_name(f"imagenet_resnet{depth}")
    assert by_paper(paper, "cifar100") is by_paper(paper, "tiny_imagenet") is by_name(f"cifar_resnet{depth}")


@pytest.mark.parametrize(
    ("paper", "name"),
    [("ResNet34", "imagenet_resnet34"), ("ResNet-34", "imagenet_resnet34"), ("MobileNetV1", "mobilenetv1")],
)
def test_a_name_that_one_network_has_needs_no_data(paper, name):
    assert by_paper(paper, "imagenet") is by_paper(paper, "cifar100") is by_name(name)


def test_an_unknown_name_lists_the_choices():
    assert by_paper("ResNet1000", "cifar100") is None
    with pytest.raises(UserError, match=r"'resnet21'.*choose one of (?=.*resnet20,).*wrn_40_2.*shufflenetv2"):
        by_name("resnet21")


def test_importing_the_catalogue_imports_no_torch():
    code = "import sys, distill.zoo; sys.exit(bool({'torch', 'numpy', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_offering_it_imports_no_torch():
    code = "import sys, distill.zoo as zoo; zoo.offer(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE])
def test_every_network_can_be_chosen(folder, name):
    config = compose("config", [f"student={name}", f"teacher={name}"])
    student, teacher = (OmegaConf.to_container(node, resolve=True) for node in (config.student, config.teacher))
    used = {"label": name, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": None, "weights": None}
    assert {key: value for key, value in student.items() if key in USES} == used
    assert student["num_classes"] == 7
    assert teacher == {**student, "weights": f"weights/toy/{name}.safetensors", **OF_TEACHER}


def test_numbers_can_be_overridden(folder):
    config = compose("config", ["student.depth=14", "student.widths=[4,4,8,12]", "teacher=wrn_16_2"])
    student, teacher = network_of(config.student), network_of(config.teacher)
    assert len(student.layer1) == 2
    assert student.classifier.weight.shape == (7, 12)
    assert teacher.classifier.weight.shape == (7, 128)


def test_a_misspelt_number_is_an_error(folder):
    with pytest.raises(HydraException, match="depht"):
        compose("config", ["student.depht=14"])


def test_a_wrong_choice_lists_the_valid_ones(folder):
    with pytest.raises(ConfigCompositionException, match=r"(?s)resnet9.*mobilenetv2.*resnet110.*timm.*wrn_40_2"):
        compose("config", ["student=resnet9"])


def test_torchvision_is_offered_too(folder):
    config = compose("config", ["student=torchvision", "student.name=shufflenet_v2_x0_5", "teacher=resnet8"])
    assert (config.student.label, config.student.mean) == ("shufflenet_v2_x0_5", None)
    assert network_of(config.student).classifier.out_features == 7


def test_timm_is_offered_too(folder):
    config = compose("config", ["teacher=timm", "teacher.name=test_resnet"])
    assert (config.teacher.label, config.teacher.allow_chance) == ("test_resnet", False)
    assert network_of(config.teacher).classifier.out_features == 7
