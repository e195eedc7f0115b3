"""The small vision transformers of the catalogue: what they are, what they see, and methods that teach them."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

import distill
import harness
from distill import zoo
from distill.build import build_distiller, build_network, freeze, shapes
from distill.errors import UserError
from distill.models.resnet import CifarResNet
from distill.run import parts
from distill.types import Batch, Spec, Step
from distill.zoo import TRANSFORMERS

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CIFAR = ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761])
# parameters at 1,000 classes and 224 px as timm's published table of results prints them (millions), and the width of
# the classifier's input
PUBLISHED = {
    "deit_tiny": (5.72, 192),
    "pit_tiny": (4.85, 256),
    "pvt_v2_b0": (3.67, 256),
    "convit_tiny": (5.71, 192),
}
SIZE = 32  # the least that all four can be built for: quick
CLASSES = 100


def build(name: str, *, num_classes: int = CLASSES, mean=CIFAR[0], std=CIFAR[1], seed: int = 0, **own):
    entry = zoo.by_name(name) if name in PUBLISHED else zoo._transformer(name, name)
    node = {"_target_": entry.target, **entry.arguments, "num_classes": num_classes, **entry.uses, **own}
    return build_network(node, what="student", num_classes=num_classes, mean=mean, std=std, seed=seed)


def test_every_transformer_is_checked():
    assert sorted(PUBLISHED) == sorted(entry.name for entry in TRANSFORMERS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_is_the_published_network(name):
    millions, width = PUBLISHED[name]
    with torch.device("meta"):
        model = timm.create_model(zoo.by_name(name).arguments["name"])
    whole = sum(p.numel() for p in model.parameters())
    assert whole / 1e6 == pytest.approx(millions, abs=0.006)
    network = build(name)
    assert network.classifier.in_features == width
    assert sum(p.numel() for p in network.parameters()) == whole - 900 * (width + 1)
    assert (network.input_size, network.mean.flatten().tolist()) == (224, pytest.approx(IMAGENET[0]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_answers_and_learns_at_32_px(name):
    network = build(name, input_size=SIZE, drop_path=0.1)
    answer = network(torch.rand(2, 3, SIZE, SIZE))
    assert answer.logits.shape == (2, CLASSES)
    assert answer.pooled.shape == (2, PUBLISHED[name][1])
    torch.testing.assert_close(network.classifier(answer.pooled), answer.logits)
    answer.logits.square().sum().backward()
    missing = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


def test_each_network_sees_the_batch_in_its_own_size_and_normalisation(monkeypatch):
    """A CNN at 32 px beside a transformer at 64 px, on images of 48 px."""
    student = build("deit_tiny", input_size=64)
    teacher = build_network(
        {"_target_": "distill.models.resnet.CifarResNet", "depth": 8, "widths": [4, 4, 8, 8], "num_classes": CLASSES},
        what="teacher",
        num_classes=CLASSES,
        mean=CIFAR[0],
        std=CIFAR[1],
        size=32,
        seed=0,
    )
    seen = {}
    for who, network in (("student", student), ("teacher", teacher)):
        monkeypatch.setattr(network, "answer", lambda x, who=who, do=network.answer: (seen.update({who: x}), do(x))[1])
    images = torch.rand(3, 3, 48, 48)
    labels = torch.arange(3)
    method = method_for("kd", student, teacher)
    method.observe(student, freeze(teacher), Batch(images, labels, labels))
    for who, size, (mean, std), smooth in (("student", 64, IMAGENET, False), ("teacher", 32, CIFAR, True)):
        resized = F.interpolate(images, (size, size), mode="bilinear", antialias=smooth)
        for channel in range(3):
            expected = (resized[:, channel] - mean[channel]) / std[channel]
            torch.testing.assert_close(seen[who][:, channel], expected)


# ---------------------------------------------------------------------- methods

# which a plain transformer does not show: all of its blocks work at one size
OF_MAPS = ["at", "catkd", "fitnet", "nst", "ofd", "reviewkd", "simkd", "sp", "vid"]


def words(name: str) -> list[str]:
    if name != "sum(kd, rkd)":
        return [f"distiller={name}"]
    return ["distiller=sum", "+distiller@distiller.terms.rkd=rkd"]


def method_for(name: str, student, teacher):
    node = harness.configure(*words(name))["distiller"]
    labels = torch.arange(40) % CLASSES
    sizes = {"num_classes": CLASSES, "size": SIZE}
    spec = Spec(
        shapes(student, what="student", **sizes), shapes(teacher, what="teacher", **sizes), CLASSES, 40, labels, 4
    )
    method = build_distiller(node, spec, seed=0)
    method.prepare(student, teacher)
    return method


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    teacher = freeze(CifarResNet(depth=8, widths=[4, 4, 8, 8], num_classes=CLASSES))
    return build("test_vit", input_size=SIZE, drop_path=0.1), teacher


def takes_steps(name: str, student, teacher) -> None:
    method = method_for(name, student, teacher)
    named = [(key, p) for part in (student, method) for key, p in part.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([p for _, p in named], lr=1e-4, weight_decay=0.0)
    for number in range(2):
        torch.manual_seed(number)
        images, strong = torch.rand(2, 4, 3, 48, 48)
        batch = Batch(images, torch.tensor([3, 3, 7, 9]), torch.arange(4) + 4 * number, strong=strong)
        optimizer.zero_grad()
        terms = method(step := Step(batch, *method.observe(student, teacher, batch), epoch=1, step=number))
        assert all(term.isfinite() for term in terms.values()), terms
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad.isfinite().all() for _, p in named if p.grad is not None)
        assert student.classifier.weight.grad.any()
        if hasattr(student.model, "pos_embed"):  # PVT v2 knows positions from its convolutions
            assert student.model.pos_embed.grad.any()
        optimizer.step()
        with torch.no_grad():
            method.update(step)


@pytest.mark.parametrize("name", [*(name for name in harness.METHODS if name not in OF_MAPS), "sum(kd, rkd)"])
def test_methods_without_maps_teach_a_transformer(name, pair):
    takes_steps(name, *pair)


@pytest.mark.parametrize("name", OF_MAPS)
def test_methods_that_read_maps_refuse_it_in_a_sentence(name, pair):
    with pytest.raises(UserError, match=r"which this student does not show: choose another student, or a distiller"):
        method_for(name, *pair)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kd", "mcld", "rkd"])
@pytest.mark.parametrize("student", PUBLISHED)
def test_methods_teach_every_transformer(student, name, pair):
    network = build(student, input_size=SIZE, drop_path=0.1)
    takes_steps(name, network, pair[1])


# ---------------------------------------------------------------------- runs

RUN = (
    *("data=digits", "recipe=cifar100_vit", "optimizer=adamw", "recipe.batch_size=256", "recipe.epochs=2"),
    *("student=timm", "student.name=test_vit", "student.input_size=32", "student.drop_path=0.1"),
    *(*harness.RANDOM_TEACHER, "distiller=mcld", "distiller.queue_length=600", "data.size=16"),
)


def test_a_run_with_drop_path_resumes_bit_equal(tmp_path: Path):
    config = harness.configure(*RUN, "checkpoint.steps=1")
    harness.execute(config, tmp_path / "whole")
    harness.execute(config, tmp_path / "killed", kill_at=7)
    harness.execute(config, tmp_path / "killed")
    one, other = harness.state(tmp_path / "whole"), harness.state(tmp_path / "killed")
    assert one.keys() == other.keys()
    assert any(key.endswith("exp_avg_sq") for key in one)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_a_finished_transformer_comes_back_at_its_size(tmp_path: Path):
    harness.execute(harness.configure(*RUN, "recipe.epochs=1"), tmp_path)
    student = distill.load(tmp_path)
    assert (student.built_for, student.input_size) == (32, 32)
    assert student(torch.rand(2, 3, 16, 16)).logits.shape == (2, 10)


def test_a_transformer_teaches(tmp_path: Path):
    """In its frozen form, at a size of its own."""
    words = [word for word in RUN if not word.startswith(("student", "teacher", "distiller"))]
    teacher = [f"teacher{word.removeprefix('student')}" for word in RUN if word.startswith("student")]
    config = harness.configure(
        *(*words, *teacher, "teacher.allow_chance=true", "student=resnet8", "student.widths=[4,4,8,8]"),
        *("distiller=sum", "+distiller@distiller.terms.rkd=rkd", "recipe.epochs=1", "optimizer=sgd", "recipe.lr=.01"),
    )
    harness.execute(config, tmp_path)
    header, row = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    values = dict(zip(header, map(float, row), strict=True))
    assert values["train/kd.kd"] > 0
    assert values["train/rkd.distance"] > 0


def test_the_experiment_is_as_published():
    config = harness.configure("experiment=vit_student")
    assert [config["names"][key] for key in ("data", "teacher", "student", "distiller")] == [
        *("cifar100", "resnet56", "deit_tiny", "lskd_kd")
    ]
    assert config["teacher"]["weights"] == "weights/cifar100/resnet56.safetensors"
    student, recipe, optimizer = config["student"], config["recipe"], config["optimizer"]
    assert (student["input_size"], student["drop_path"]) == (224, 0.1)
    assert (student["mean"], config["teacher"]["mean"]) == (IMAGENET[0], CIFAR[0])
    assert (recipe["epochs"], recipe["batch_size"], optimizer["lr"], optimizer["weight_decay"]) == (
        300,
        128,
        5e-4,
        0.05,
    )
    assert optimizer["lr"] * recipe["schedule"]["floor"] == pytest.approx(5e-6)
    assert config["data"]["crop_size"] == 224
    host = config["distiller"]["host"]
    assert (host["ce_weight"], host["kd_weight"], host["temperature"]) == (0.5, 10, 3)


def test_without_a_size_of_its_own_a_network_looks_at_large_crops_in_the_images_size():
    config = harness.configure(
        "experiment=vit_student", "teacher.weights=null", "student=resnet8", "~student.drop_path"
    )
    assert parts.build_one(config, "teacher").input_size == 32
    assert parts.build_one(config, "student").input_size == 32
    assert parts.build_one(harness.configure("teacher.weights=null"), "teacher").input_size is None


def test_kept_answers_refuse_views_without_number(cifar_root, tmp_path: Path):
    config = harness.configure(
        *("experiment=vit_student", "distiller=kd", "student=resnet8", "~student.drop_path", "teacher.keep=memory"),
        *("teacher=resnet8", "teacher.weights=null", "teacher.allow_chance=true", f"data.root={cifar_root}"),
    )
    with pytest.raises(
        UserError, match=r"needs a finite set of augmented views, but those of data=cifar100 with RandAugment are"
    ):
        harness.execute(config, tmp_path)
