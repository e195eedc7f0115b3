"""A folder of somebody else's, brought with `-cd`: networks, a method and a data set; the package stays as it is."""

import json
import sys
from pathlib import Path

import pytest
import torch

import distill
import harness
from command_line import assert_one_sentence, process
from distill.errors import UserError
from distill.run import train

PARTS = '''
import torch
import torch.nn.functional as F
from dataclasses import dataclass
from torch import nn

from distill.data.base import Part
from distill.data.resident import ResidentData
from distill.distillers import Distiller


class Plain(nn.Module):
    """A network that knows nothing of this project."""

    def __init__(self, *, width, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)))


class Nearness(Distiller):
    """The squared distance of the logits."""

    def __init__(self, spec, *, ce_weight: float, weight: float) -> None:
        super().__init__()
        self.ce_weight, self.weight = ce_weight, weight

    def forward(self, step):
        student, teacher = step.student.logits, step.teacher.logits
        return {
            "ce": self.ce_weight * F.cross_entropy(student, step.batch.labels),
            "near": self.weight * F.mse_loss(student, teacher),
        }


@dataclass(kw_only=True, eq=False, repr=False)
class Noise(ResidentData):
    """Random images, each class with a brightness of its own."""

    samples: int

    def read(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(self.samples) % self.num_classes
        noise = torch.randint(40, (self.samples, self.size, self.size, 3), generator=generator)
        images = (noise + 50 * labels[:, None, None, None]).to(torch.uint8)
        return Part(images, labels), Part(images[:60], labels[:60])
'''
NETWORK = """
_target_: their_parts.Plain
width: {width}
num_classes: ${{data.num_classes}}
"""
METHOD = """
_target_: their_parts.Nearness
ce_weight: 1.0
weight: 0.5
"""
DATA = """
_target_: their_parts.Noise
samples: 200
root: nowhere
num_classes: 4
size: 12
mean: [0.5, 0.5, 0.5]
std: [0.25, 0.25, 0.25]
flip: true
padding: 1
holdout: 0
batch_size: ${recipe.batch_size}
eval_batch_size: 64
seed: ${seed}
"""
# one of theirs that is called as one of ours: Hydra merges theirs into ours
SAME_NAME = """
widths: [4, 4, 8, 8]
label: slim
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their files."""
    place = tmp_path_factory.mktemp("theirs")
    files = {
        "their_parts.py": PARTS,
        "student/plain.yaml": NETWORK.format(width=6),
        "teacher/plain_wide.yaml": NETWORK.format(width=12) + "allow_chance: true\n",
        "distiller/nearness.yaml": METHOD,
        "data/noise.yaml": DATA,
        "student/resnet8.yaml": SAME_NAME,
    }
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(content)
    return place


WORDS = ("data=noise", "recipe=digits", "recipe.epochs=1", "student=plain", "teacher=plain_wide", "distiller=nearness")


def test_their_parts_train_together(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    answer = process("-cd", str(folder), *WORDS, f"hydra.run.dir={run}", "trainer.precision=32-true")
    assert answer.code == 0, answer.error
    result = json.loads((run / "result.json").read_text())
    names = {"data": "noise", "teacher": "plain_wide", "student": "plain", "distiller": "nearness"}
    assert result["names"] == names
    assert result["parameters"]["student"] == 6 * 28 + 4 * 7
    header, row = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    metrics = dict(zip(header, map(float, row), strict=True))
    assert metrics["train/loss"] == pytest.approx(metrics["train/ce"] + metrics["train/near"])
    assert metrics["train/near"] > 0

    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    images = torch.rand(2, 3, 12, 12)
    assert distill.load(run)(images).logits.shape == (2, 4)


def theirs(folder: Path, *overrides: str) -> dict[str, object]:
    """Composed with their folder, in this process."""
    return harness.configure(f"hydra.searchpath=[file://{folder}]", *overrides)


def test_a_data_set_without_a_recipe_says_how_to_choose_one(folder):
    with pytest.raises(
        UserError, match=r"^There is no recipe for data=noise: choose one, for instance recipe=cifar100"
    ):
        theirs(folder, "data=noise")


def test_a_file_named_as_a_network_of_the_catalogue_is_merged_with_it(folder):
    """Hydra takes the catalogue's entry for its schema: keys that theirs leaves out keep the catalogue's values."""
    with pytest.warns(UserWarning, match="validated against ConfigStore schema with the same name"):
        student = theirs(folder, "student=resnet8", "data=digits")["student"]
    ours = harness.configure("student=resnet8", "data=digits")["student"]
    assert student == {**ours, "widths": [4, 4, 8, 8], "label": "slim"}


def test_their_names_are_among_the_choices(folder):
    answer = process("-cd", str(folder), "distiller=nearnes")
    assert_one_sentence(answer)
    assert answer.error.startswith("distiller=nearnes is unknown: choose one of nearness, ")
    line = "python src/train.py student=pl"
    answer = process("-cd", str(folder), "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert answer.out.split() == ["student=plain"]


def test_a_key_of_theirs_that_is_misspelt(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    config = theirs(folder, *WORDS, "+distiller.wieght=1")
    with pytest.raises(UserError, match=r"^There is no key distiller\.wieght: Nearness takes weight, ce_weight\.$"):
        train.carry_out(config, tmp_path)
