"""Students deployed together with parts of their teacher: scored from every file of a run, and teachers later."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import distill
import harness
from distill.checkpoint import read_metadata
from distill.deploy import RECIPE, Deployed
from distill.distillers.simkd import Reused
from distill.errors import UserError

SIMKD = ("distiller=simkd", *harness.RANDOM_TEACHER)
ONE_EPOCH = ("recipe.epochs=1",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    harness.execute(harness.configure(*harness.SMALL, *SIMKD), folder)
    return folder


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("file", ["", "student.safetensors", "last.ckpt", "best.ckpt"])
def test_every_file_of_a_run_scores_as_recorded(run: Path, file: str) -> None:
    scores = harness.evaluate(f"source={run / file}")
    recorded = result(run)["best" if file == "best.ckpt" else "last"]
    assert scores["top1"] == pytest.approx(recorded["top1"], abs=1e-4)
    assert scores["nll"] == pytest.approx(recorded["nll"], rel=1e-5)


def test_parameters_are_those_of_all_three_parts(run: Path) -> None:
    found = result(run)["parameters"]
    middle, outputs, classes = 4, 8, 10
    projector = (8 * middle + 2 * middle) + (9 * middle**2 + 2 * middle) + (middle * outputs + 2 * outputs)
    assert found["extra"] == projector
    assert found["deployed"] == found["student"] + projector + outputs * classes + classes


def test_a_checkpoint_needs_no_teacher_beside_it(run: Path, tmp_path: Path) -> None:
    """The classifier that was reused is in it; the teacher's file may be gone."""
    shutil.copytree(run, tmp_path / "moved")
    config = tmp_path / "moved/config.yaml"
    text = config.read_text()
    assert text.count("weights: null\n") == 2  # the teacher's, and the student's before training
    config.write_text(text.replace("weights: null\n", "weights: gone.pth\n"))
    scores = harness.evaluate(f"source={tmp_path / 'moved/last.ckpt'}")
    assert scores["top1"] == pytest.approx(result(run)["last"]["top1"], abs=1e-4)


def borrowing(*more: str) -> Any:
    config = harness.configure(*harness.SMALL, *harness.RANDOM_TEACHER, "distiller=kd", *ONE_EPOCH, *more)
    config["distiller"] = {"_target_": "methods.Borrows", "weight": 1.0}
    return config


def test_parts_that_no_checkpoint_holds_come_from_the_teachers_file(run: Path, tmp_path: Path) -> None:
    teacher = shutil.copy(run / "last.ckpt", tmp_path / "teacher.ckpt")
    config = borrowing(f"teacher.weights={teacher}")
    harness.execute(config, tmp_path / "run")
    source = tmp_path / "run/last.ckpt"
    scores = harness.evaluate(f"source={source}")
    assert scores["nll"] == pytest.approx(result(tmp_path / "run")["last"]["nll"], rel=1e-5)
    Path(teacher).unlink()
    with pytest.raises(UserError, match=r"lacks what kd deploys of the teacher, whose weights are not at .*\.ckpt"):
        harness.evaluate(f"source={source}")
    scores = harness.evaluate(f"source={tmp_path / 'run'}")
    assert scores["nll"] == pytest.approx(result(tmp_path / "run")["last"]["nll"], rel=1e-5)


def test_parts_of_a_teacher_that_was_never_trained_are_drawn_again(tmp_path: Path) -> None:
    harness.execute(borrowing("seed=3"), tmp_path)
    scores = harness.evaluate(f"source={tmp_path / 'last.ckpt'}")
    assert scores["nll"] == pytest.approx(result(tmp_path)["last"]["nll"], rel=1e-5)


# ---------------------------------------------------------------------- as a teacher


def deployed(file: Path) -> tuple[str, ...]:
    return ("teacher=deployed", "teacher.label=mine", f"teacher.weights={file}", "teacher.allow_chance=true")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["kd", "ofd", "catkd"])
def test_a_deployed_student_teaches(run: Path, tmp_path: Path, method: str) -> None:
    """By its logits, its stages and norms, and its classifier."""
    file = run / "student.safetensors"
    config = harness.configure(*harness.SMALL, f"distiller={method}", *deployed(file), *ONE_EPOCH)
    assert config["names"]["teacher"] == "mine"
    harness.execute(config, tmp_path)
    found = result(tmp_path)
    assert found["teacher"]["top1"] == pytest.approx(result(run)["last"]["top1"], abs=1e-4)
    assert found["teacher"]["weights"] == "student.safetensors"


def test_a_student_of_a_deployed_student_needs_no_file_of_its_teachers(
    run: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    teacher = shutil.copy(run / "student.safetensors", tmp_path / "teacher.safetensors")
    config = harness.configure(*harness.SMALL, "distiller=simkd", *deployed(Path(teacher)), *ONE_EPOCH)
    harness.execute(config, tmp_path / "run")
    last = result(tmp_path / "run")["last"]
    first = distill.load(tmp_path / "run")(images).logits
    Path(teacher).unlink()
    student = distill.load(tmp_path / "run")
    assert torch.equal(student(images).logits, first)
    assert isinstance(student, Reused)
    scores = harness.evaluate(f"source={tmp_path / 'run'}")
    assert scores["top1"] == pytest.approx(last["top1"], abs=1e-4)


def test_is_what_was_deployed_with_its_own_normalisation(run: Path, images: torch.Tensor) -> None:
    original = distill.load(run)
    network = Deployed(file=str(run / "student.safetensors"), recipe=None)
    network.published.load_state_dict(original.state_dict())
    network.normalise(mean=[0.9, 0.9, 0.9], std=[0.1, 0.1, 0.1], input_size=8)
    network.eval()
    with torch.no_grad():
        one, other = original(images), network(images)
    for name in ("logits", "final", "pooled"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert len(one.stages) == len(other.stages) == 4
    torch.testing.assert_close(network.classify(other.pooled), other.logits)
    assert [norm.num_features for norm in network.norms] == [4, 8, 8]  # type: ignore[union-attr]


def test_a_students_own_normalisation_goes_with_it(tmp_path: Path, images: torch.Tensor) -> None:
    own = ("student.mean=[.2,.3,.4]", "student.std=[.5,.6,.7]", "student.input_size=12")
    harness.execute(harness.configure(*harness.SMALL, *SIMKD, *ONE_EPOCH, *own), tmp_path)
    file = tmp_path / "student.safetensors"
    network = Deployed(file=None, recipe=read_metadata(file)[RECIPE])
    network.published.load_state_dict(distill.load(tmp_path).state_dict())
    assert isinstance(network.inner, Reused)
    student = network.inner.student
    assert student.input_size == 12
    torch.testing.assert_close(student.mean.flatten(), torch.tensor([0.2, 0.3, 0.4]))
    with torch.no_grad():
        assert torch.equal(network.eval()(images).logits, distill.load(tmp_path)(images).logits)


def test_mistakes(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.label must be given"):
        harness.configure(*harness.SMALL, "teacher=deployed", "distiller=kd")
    with pytest.raises(UserError, match=r"nowhere\.safetensors does not exist"):
        Deployed(file=str(tmp_path / "nowhere.safetensors"), recipe=None)
    with pytest.raises(UserError, match="does not say which network it holds"):
        Deployed(file=str(run / "last.ckpt"), recipe=None)
    with pytest.raises(UserError, match=r"file must be the path of a run's student\.safetensors"):
        Deployed(file=None, recipe=None)
