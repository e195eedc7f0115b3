"""What a command line is composed of: files, who wins, and numbers that depend on others."""

import inspect
import re

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from distill.errors import UserError
from harness import CONF, configure, yaml

GROUPS = ("data", "recipe", "distiller", "optimizer", "trainer", "logger", "experiment")
NAMES = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in GROUPS}
# lists of runs are composed one by one, in tests/sweep
NAMES["experiment"] = [name for name in NAMES["experiment"] if "table" not in yaml(CONF / f"experiment/{name}.yaml")]
PAIRS = sorted((CONF / "pair").glob("*/*.yaml"), key=str)
TWEAKS = sorted((CONF / "tweak").glob("*.yaml"), key=str)
# how train.py builds them, and what it adds
FROM_YAML = [(group, name) for group in ("optimizer", "trainer") for name in NAMES[group]]
ADDED = {"optimizer": {"params"}, "trainer": set()}


# ---------------------------------------------------------------------- every file


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in NAMES for name in NAMES[group]])
def test_every_file_composes(group, name, tmp_path):
    for folder in ("train/a", "val/a"):
        (tmp_path / folder).mkdir(parents=True)
    root = (f"data.root={tmp_path}",) if (group, name) == ("data", "folder") else ()
    config = configure(f"{group}={name}", *root)
    chosen = config["names"].get(group)
    assert chosen is None or chosen.partition("+")[0] == name  # with what it is made of
    if group == "data":
        assert config["recipe"] == configure(f"data={name}", f"recipe={name}", *root)["recipe"]


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_pairs_numbers_apply_to_that_pair(path):
    teacher, student = path.stem.split("-")
    config = configure(f"distiller={path.parent.name}", f"teacher={teacher}", f"student={student}")
    values = composed_alone(path)
    assert set(values) <= {"distiller", "recipe"}
    assert all(holds(config[group], values[group]) for group in values)


def composed_alone(path):
    """A pair's values, its warm-ups at full length."""
    return OmegaConf.to_container(OmegaConf.create(re.sub(r"\$\{scaled:([^}]*)\}", r"\1", path.read_text())))


def holds(node, values):
    """Whether all of the values, those of methods within a method included, stand in a node."""
    return all(holds(node[key], v) if isinstance(v, dict) else node[key] == v for key, v in values.items())


@pytest.mark.parametrize("path", TWEAKS, ids=lambda path: path.stem)
def test_a_tweak_applies_to_its_data_and_student(path):
    data, student = path.stem.split("-")
    assert yaml(path)["recipe"].items() <= configure(f"data={data}", f"student={student}")["recipe"].items()


@pytest.mark.parametrize(("group", "name"), FROM_YAML)
def test_keys_fit_the_signature(group, name):
    node = configure(f"{group}={name}")[group]
    parameters = inspect.signature(get_class(node.pop("_target_"))).parameters
    for own in ("precision", "compile"):  # chosen by what the device can do
        node.pop(own, None)
    assert node.keys() <= parameters.keys()
    missing = {key for key, p in parameters.items() if p.default is p.empty} - node.keys()
    assert missing == ADDED[group]


@pytest.mark.parametrize("name", NAMES["recipe"])
def test_recipes_hold_exactly_the_keys_of_a_recipe(name):
    recipe = yaml(CONF / "recipe" / f"{name}.yaml")
    assert set(recipe) == {"epochs", "full_epochs", "batch_size", "accumulate", "lr", "weight_decay", "schedule"}
    schedule = recipe["schedule"]
    parameters = inspect.signature(get_class(schedule.pop("_target_"))).parameters.values()
    assert set(schedule) == {p.name for p in parameters}
    assert all(p.default is p.empty for p in parameters)


# ---------------------------------------------------------------------- who wins


def test_the_recipe_is_that_of_the_data_unless_named():
    assert configure("data=digits")["recipe"]["epochs"] == 12
    assert configure("data=digits", "recipe=cifar100")["recipe"]["epochs"] == 240


def test_a_pair_without_numbers_of_its_own_has_the_methods():
    assert configure("distiller=mcld", "teacher=resnet32x4", "student=resnet8x4")["distiller"]["ce_weight"] == 0
    assert configure("distiller=dkd", "teacher=resnet32x4", "student=resnet8x4")["distiller"]["beta"] == 8


PAIR = ("teacher=resnet56", "student=resnet20")


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (("distiller=mcld", *PAIR), "ce_weight", 1.0),
        (("distiller=mcld", *PAIR, "distiller.ce_weight=.25"), "ce_weight", 0.25),
        (("distiller=dkd", *PAIR), "beta", 2.0),
        ((*PAIR, "distiller.beta=3", "distiller=dkd"), "beta", 3),
        (("distiller=kd", *PAIR), "ce_weight", 0.1),
    ],
)
def test_the_command_line_wins_over_a_pair_and_a_pair_over_the_method(overrides, key, value):
    assert configure(*overrides)["distiller"][key] == value


def test_an_experiment_chooses_groups_and_the_command_line_wins():
    config = configure("experiment=mcld_v2", "distiller=kd")
    assert config["names"]["distiller"] == "kd"
    config = configure("experiment=mcld_v2", "distiller.target_mask=none")
    assert config["distiller"]["target_mask"] == "none"
    assert config["distiller"]["category_warmup_epochs"] == 20
    assert configure("experiment=mcld_v2")["distiller"]["target_mask"] == "same_class"


@pytest.fixture
def experiment(tmp_path):
    """An experiment of a third party that sets what pair and tweak set too."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n"
        "  - override /teacher: resnet56\n"
        "  - override /student: mobilenetv2\n"
        "distiller: {ce_weight: 0.5}\n"
        "recipe: {lr: 0.02}\n"
    )
    return (f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")


def test_an_experiment_wins_over_pair_and_tweak_and_the_command_line_over_all(experiment):
    config = configure(*experiment)
    assert config["names"]["student"] == "mobilenetv2"
    assert (config["distiller"]["ce_weight"], config["recipe"]["lr"]) == (0.5, 0.02)
    config = configure(*experiment, "distiller.ce_weight=2", "recipe.lr=.3")
    assert (config["distiller"]["ce_weight"], config["recipe"]["lr"]) == (2, 0.3)


def test_the_light_students_rate_is_lower_unless_it_is_given():
    assert configure("student=resnet8x4")["recipe"]["lr"] == 0.05
    assert configure("student=mobilenetv2")["recipe"]["lr"] == 0.01
    assert configure("student=mobilenetv2", "recipe.lr=.04")["recipe"]["lr"] == 0.04
    assert configure("student=mobilenetv2", "data=digits")["recipe"]["lr"] == 0.05
    assert configure("student=mobilenetv2")["optimizer"]["lr"] == 0.01


# ---------------------------------------------------------------------- numbers that depend on others


@pytest.mark.parametrize(
    ("epochs", "milestones", "warmup"),
    [(240, [150, 180, 210], 20), (24, [15, 18, 21], 2), (12, [7.5, 9, 10.5], 1), (480, [150, 180, 210], 20)],
)
def test_milestones_and_warm_ups_shrink_and_never_stretch(epochs, milestones, warmup):
    config = configure("distiller=dkd", f"recipe.epochs={epochs}")
    assert config["recipe"]["schedule"]["milestones"] == pytest.approx(milestones)
    assert config["distiller"]["warmup_epochs"] == pytest.approx(warmup)


def test_a_warm_up_that_is_given_stays():
    assert (
        configure("distiller=dkd", "recipe.epochs=24", "distiller.warmup_epochs=5")["distiller"]["warmup_epochs"] == 5
    )


def test_the_networks_follow_the_data():
    config = configure("data=digits", "teacher=resnet20", "student=resnet8")
    assert config["teacher"]["num_classes"] == config["student"]["num_classes"] == config["data"]["num_classes"] == 10
    assert config["student"]["mean"] == config["data"]["mean"]
    assert config["teacher"]["weights"] == "weights/digits/resnet20.safetensors"


def test_an_optimizers_number_may_belong_to_the_data():
    """DOT's, as published for both data sets; the command line wins."""
    assert configure("optimizer=dot")["optimizer"]["delta"] == 0.075
    assert configure("optimizer=dot", "data=imagenet")["optimizer"]["delta"] == 0.09
    assert configure("optimizer=dot", "data=imagenet", "optimizer.delta=.05")["optimizer"]["delta"] == 0.05


def test_table_5s_pairs_have_imagenets_numbers():
    pair = ("teacher=imagenet_resnet34", "student=imagenet_resnet18")
    config = configure("distiller=crd", *pair)
    assert (config["recipe"]["batch_size"], config["recipe"]["lr"], config["optimizer"]["lr"]) == (256, 0.1, 0.1)
    assert configure("distiller=mcld", *pair)["distiller"]["ce_weight"] == 1
    other = ("teacher=imagenet_resnet50", "student=mobilenetv1")
    assert configure("distiller=mcld", *other)["distiller"]["ce_weight"] == 0
    assert [configure("distiller=dkd", *p)["distiller"]["beta"] for p in (pair, other)] == [0.5, 2]
    assert configure("distiller=kd", *other)["distiller"]["temperature"] == 1


def test_no_teacher_is_a_choice():
    config = configure("teacher=none", "distiller=none")
    assert config["teacher"] is None
    assert config["names"]["teacher"] == "none"


def test_a_timm_networks_name_is_its_own():
    assert configure("student=timm", "student.name=test_resnet")["names"]["student"] == "test_resnet"


def test_a_file_that_would_not_be_read_is_refused(tmp_path):
    (tmp_path / "distiller").mkdir()
    (tmp_path / "distiller/kd.yaml").write_text("_target_: theirs.KD\n")
    with pytest.raises(UserError, match=r"distiller/kd\.yaml would not be read: distiller/kd is there already"):
        configure(f"hydra.searchpath=[file://{tmp_path}]", "distiller=kd")
