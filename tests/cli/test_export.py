"""Exports: files that answer as the run's student, and a card that says what the run's own files say."""

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import distill
import harness
from command_line import assert_one_sentence, here
from distill.checkpoint import read_metadata
from distill.deploy import load_checkpoint
from distill.distillers.simkd import Reused
from distill.errors import UserError
from distill.export.formats import FORMATS

FILES = {"student.safetensors", "student.pt2", "student.onnx", "README.md", "card.json"}
RUNS = {
    "mcld": ("distiller=mcld", *harness.RANDOM_TEACHER),
    "simkd": ("distiller=simkd", *harness.RANDOM_TEACHER),
    "alone": ("distiller=none", "teacher=none", "recipe.epochs=1"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Finished runs, by the name of their method; each is trained once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            harness.execute(harness.configure(*harness.SMALL, *RUNS[name]), folder / name)
        return folder / name

    return run


@pytest.fixture(scope="module")
def exported(runs: Callable[[str], Path]) -> Callable[[str], Path]:
    """Their exports in every format."""

    def export(name: str) -> Path:
        run = runs(name)
        return run / "export" if (run / "export").exists() else harness.export(f"source={run}")

    return export


def images(rows: int) -> Tensor:
    return torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(rows))


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text())


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["mcld", "simkd"])
def test_every_format_answers_as_the_runs_student(
    name: str, runs: Callable[[str], Path], exported: Callable[[str], Path]
) -> None:
    folder = exported(name)
    assert {path.name for path in folder.iterdir()} == FILES
    student = distill.load(runs(name))
    assert isinstance(student, Reused) == (name == "simkd")
    copied, program = distill.load(folder / "student.safetensors"), torch.export.load(folder / "student.pt2").module()
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 5, 64):
        asked = images(rows)
        with torch.no_grad():
            expected = student(asked).logits
            assert expected.std() > 0.01
            assert torch.equal(copied(asked).logits, expected)
            torch.testing.assert_close(program(asked), expected, atol=1e-5, rtol=1e-5)
        (logits,) = session.run(["logits"], {"images": asked.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-5)


def test_the_graphs_say_what_they_are(exported: Callable[[str], Path]) -> None:
    folder = exported("mcld")
    model = onnx.load(folder / "student.onnx")
    onnx.checker.check_model(model)
    (taken,), (given,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in (taken, given)]
    assert [taken.name, given.name] == ["images", "logits"]
    assert shapes == [["batch", 3, 16, 16], ["batch", 10]]
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [facts(folder)["opset"]] == [20]
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["classes"]) == [str(digit) for digit in range(10)]
    assert "RGB in [0, 1]" in said["images"]
    extra = {"about.json": ""}
    torch.export.load(folder / "student.pt2", extra_files=extra)
    assert json.loads(extra["about.json"]) == said
    assert json.loads(read_metadata(folder / "student.safetensors")["classes"]) == json.loads(said["classes"])


def test_folding_can_be_left_out(runs: Callable[[str], Path], tmp_path: Path) -> None:
    norms = {}
    for folded in (True, False):
        folder = harness.export(
            f"source={runs('alone')}", f"output={tmp_path / str(folded)}", "formats=[torch_export]", f"folded={folded}"
        )
        program = torch.export.load(folder / "student.pt2")
        norms[folded] = sum("batch_norm" in str(node.target) for node in program.graph.nodes)
        assert facts(folder)["folded"] == (9 if folded else 0)
        assert ("with 9 BatchNorms folded into convolutions" in card(folder)) == folded
    assert norms == {True: 0, False: 9}


def test_no_region_of_autocast_is_left_in_a_program(exported: Callable[[str], Path]) -> None:
    program = torch.export.load(exported("simkd") / "student.pt2")
    kinds = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.linear.default" in kinds
    assert all(kind.startswith("aten.") for kind in kinds)
    with torch.autocast("cpu"):  # works as before
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype is torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype is torch.float32


def test_a_checkpoint_is_exported_with_its_own_scores(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("simkd"), run, ignore=shutil.ignore_patterns("export"))
    content = result(run)
    content["best"] |= {"epoch": 1, "top1": 61.25}  # unlike the last
    (run / "result.json").write_text(json.dumps(content))
    folder = harness.export(f"source={run / 'best.ckpt'}", f"output={tmp_path / 'new/out'}", "formats=safetensors")
    expected = load_checkpoint(run / "best.ckpt", harness.yaml(run / "config.yaml")).eval()
    with torch.no_grad():
        assert torch.equal(distill.load(folder / "student.safetensors")(images(4)).logits, expected(images(4)).logits)
    assert facts(folder)["accuracy"]["exported"] == "best"
    assert "weights are those of the best epoch (epoch 1 of 2), at 61.25 % top-1 on the test set." in card(folder)
    assert "| student, best epoch (1), **exported** | 61.25 |" in card(folder)
    assert "The best epoch is the one that scored best on this very set" in card(folder)
    assert read_metadata(folder / "student.safetensors")["top1"] == "61.25"


def test_an_earlier_exports_other_formats_go(runs: Callable[[str], Path], tmp_path: Path) -> None:
    words = (f"source={runs('alone')}", f"output={tmp_path / 'out'}")
    harness.export(*words, "formats=[torch_export]")
    (tmp_path / "out/LICENSE").write_text("mine")
    harness.export(*words, "formats=[safetensors]")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"student.safetensors", "README.md", "card.json", "LICENSE"}
    assert not list(tmp_path.glob(".*"))


# ---------------------------------------------------------------------- the card


@pytest.mark.parametrize("name", ["mcld", "simkd"])
def test_its_numbers_are_those_of_the_run(
    name: str, runs: Callable[[str], Path], exported: Callable[[str], Path]
) -> None:
    run, folder = result(runs(name)), exported(name)
    found, text = facts(folder), card(folder)
    for key in ("best", "last", "teacher", "evaluated_on"):
        assert found["accuracy"][key] == run[key]
    assert found["accuracy"]["exported"] == "last"
    assert {key: found["parameters"][key] for key in ("student", "deployed")} == {
        key: run["parameters"][key] for key in ("student", "deployed")
    }
    for scores in (run["best"], run["last"], run["teacher"]):
        assert f"| {scores['top1']:.2f} | {scores['top5']:.2f} |" in text
    for number in (*found["parameters"].values(), *(of["bytes"] for of in found["files"].values())):
        assert f"| {number:,} |" in text
    for file, of in found["files"].items():
        assert (folder / file).stat().st_size == of["bytes"]
    assert (run["commit"] or "unknown") in text
    assert ("parts that the method needs" in text) == (run["parameters"]["deployed"] > run["parameters"]["student"])
    method = harness.yaml(runs(name) / "config.yaml")["distiller"]
    assert method.pop("_target_")
    assert found["method"]["numbers"] == method
    front = yaml.safe_load(text.split("---")[1])
    (measured,) = front["model-index"][0]["results"]
    assert [entry["value"] for entry in measured["metrics"]] == [round(run["last"][key], 2) for key in ("top1", "top5")]


def test_it_says_what_was_compared_and_timed(exported: Callable[[str], Path]) -> None:
    folder = exported("simkd")
    found = facts(folder)
    assert found["check"]["images"] == "the first 70 images of the test set of digits"
    assert set(found["check"]["formats"]) == set(FORMATS)
    for compared in found["check"]["formats"].values():
        assert [row["batch"] for row in compared] == [1, 7, 64]
        assert all(row["equal_predictions"] == 100 for row in compared)
        assert all(row["difference"] <= 1e-4 * found["check"]["largest_logit"] for row in compared)
    rows = found["latency"]["rows"]
    assert [row["by"] for row in rows] == ["PyTorch, eager", "PyTorch, eager", "torch.export", "onnxruntime"]
    for row in rows:
        for size in ("1", "3"):
            low, high = row["batch"][size]["quartiles_ms"]
            assert 0 < low <= row["batch"][size]["median_ms"] <= high
    assert "Images are float32 in [0, 1], RGB, of shape (batch, 3, 16, 16)" in card(folder)


@pytest.mark.parametrize("name", ["mcld", "simkd"])
def test_its_code_runs(name: str, exported: Callable[[str], Path], tmp_path: Path, monkeypatch: Any) -> None:
    """One block after the other, in the folder as it may be copied anywhere."""
    shutil.copytree(exported(name), tmp_path / "copy")
    noise = np.random.default_rng(0).integers(256, size=(40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "copy/photo.jpg")
    monkeypatch.chdir(tmp_path / "copy")
    blocks = re.findall(r"```python\n(.*?)```", card(Path()), flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    answers = []
    for block in blocks[1:]:
        exec(block, names)
        answers.append(np.asarray(names.pop("logits")))
    assert answers[0].shape == (1, 10)
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-5, rtol=1e-4)


def test_a_run_without_a_teacher(exported: Callable[[str], Path], runs: Callable[[str], Path]) -> None:
    folder = harness.export(f"source={runs('alone')}", "formats=[safetensors]")
    found, text = facts(folder), card(folder)
    assert found["accuracy"]["teacher"] is None
    assert "teacher" not in found["parameters"]
    assert text.count("trained without a teacher") == 1
    assert "by the method" not in text
    assert "student.onnx" not in text


def test_a_file_that_was_moved_says_what_is_unknown(runs: Callable[[str], Path], tmp_path: Path) -> None:
    file = shutil.copy(runs("mcld") / "student.safetensors", tmp_path / "mine.safetensors")
    folder = harness.export(f"source={file}", "formats=[safetensors]")
    found, text = facts(folder), card(folder)
    assert folder == tmp_path / "export"
    assert found["accuracy"] is None
    assert found["method"] is None
    assert found["check"]["images"] == "70 random images (the data set was not at hand)"
    assert "Unknown: there was no result.json of a finished run" in text
    assert "which epoch that was is unknown" in text
    assert "model-index" not in text
    assert "trained with the teacher `resnet8` by the method `mcld`" in text
    assert found["parameters"]["student"] == result(runs("mcld"))["parameters"]["student"]
    harness.export(f"source={file}", "data=digits", "data.size=16", "formats=[safetensors]")
    assert "test set of digits" in facts(folder)["check"]["images"]


def test_data_that_is_gone(runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("alone"), run, ignore=shutil.ignore_patterns("export"))
    text = (run / "config.yaml").read_text()
    text = text.replace("distill.data.digits.Digits", "distill.data.folder.Folder")
    text = text.replace("  padding: 2\n", "  workers: 0\n  prefetch: 1\n")
    (run / "config.yaml").write_text(text)
    folder = harness.export(f"source={run}", "formats=[safetensors]", "data.root=gone")
    assert "random images" in facts(folder)["check"]["images"]
    assert "checked on random images: the data set could not be read here: gone has no folder train" in (
        capsys.readouterr().out
    )


def test_a_teacher_that_cannot_be_built_again(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("mcld"), run, ignore=shutil.ignore_patterns("export"))
    file = run / "config.yaml"
    head, _, tail = file.read_text().partition("teacher:\n  _target_: distill.models.resnet.CifarResNet\n")
    file.write_text(f"{head}teacher:\n  _target_: distill.models.resnet.Gone\n{tail}")
    folder = harness.export(f"source={run}", "formats=[safetensors]")
    assert "The teacher could not be built again, so its speed is unknown: teacher._target_=" in card(folder)
    assert f"| {result(run)['teacher']['top1']:.2f} |" in card(folder)


# ---------------------------------------------------------------------- mistakes


def test_the_command_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer = here(monkeypatch, capsys, script="export")
    assert_one_sentence(answer)
    assert answer.error.startswith("Say what to export: source=RUN_FOLDER")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("source=absent",), "source=absent does not exist."),
        (
            ("source={run}", "formats=[safetensor]"),
            "There is no format safetensor: choose some of safetensors, torch_e",
        ),
        (("source={run}", "formats=[]"), "formats=[] is no list of formats: choose some of safetensors, torch_export,"),
        (("source={run}/metrics.csv",), "{run}/metrics.csv does not say which network it holds"),
        (("source={run}/teacher.safetensors",), "{run}/teacher.safetensors does not say which network it holds"),
        (
            ("source={run}", "data=cifar100"),
            "data=cifar100 has 100 classes at 32 px, but the student was trained on 10",
        ),
        (("source={run}", "output={run}"), "output={run} holds files that no export wrote: name a new or an empty"),
        (("source={run}", "output={run}/result.json"), "output={run}/result.json is a file: name a folder."),
        (("source={run}", "output={run}/result.json/x"), "output={run}/result.json/x may not be written (Not a direc"),
        (("source={run}", "check.rows=0"), "check.rows=0 must be made of whole numbers of at least 1."),
        (("source={run}", "latency.batches=[1,x]"), "latency.batches=[1, 'x'] must be made of whole numbers"),
        (("source={run}", "check.tolerance=-1"), "check.tolerance=-1 must be a number of at least 0."),
    ],
)
def test_mistakes(words: tuple[str, ...], expected: str, runs: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("mcld"), run, ignore=shutil.ignore_patterns("export"))
    before = {path.name for path in run.iterdir()}
    with pytest.raises(UserError) as error:
        harness.export(*(word.format(run=run) for word in words))
    assert str(error.value).startswith(expected.format(run=run))
    assert {path.name for path in run.iterdir()} == before


def test_a_run_that_has_not_ended(runs: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("mcld"), run, ignore=shutil.ignore_patterns("export", "result.json", "student.safetensors"))
    with pytest.raises(UserError, match=rf"^{run} is no finished run: .* or export a checkpoint .*source={run}/last"):
        harness.export(f"source={run}")
    assert not list(run.glob("*export*"))
    folder = harness.export(f"source={run / 'last.ckpt'}", "formats=[safetensors]")
    assert "which epoch that was is unknown" in card(folder)
    assert "temperature" in card(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(runs: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    for output in (tmp_path / "closed", tmp_path / "closed/new"):
        with pytest.raises(
            UserError, match=r"^output=.* may not be written \(Permission denied\): name another folder"
        ):
            harness.export(f"source={runs('alone')}", f"output={output}")


def test_a_file_that_answers_otherwise_is_not_left_behind(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FORMATS["torch_export"]

    def doubled(path: Path) -> Callable[[Tensor], Tensor]:
        answer = right.load(path)
        return lambda asked: answer(asked) * 1.001

    monkeypatch.setitem(FORMATS, "torch_export", replace(right, load=doubled))
    with pytest.raises(
        UserError, match=r"^student\.pt2 answers otherwise than PyTorch, by .* in batches of 1, where check"
    ):
        harness.export(f"source={runs('alone')}", f"output={tmp_path / 'out'}", "formats=[safetensors,torch_export]")
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_not_installed(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr("distill.export.formats.find_spec", lambda name: None if name == "onnxscript" else there(name))
    words = (f"source={runs('alone')}", f"output={tmp_path / 'out'}")
    with pytest.raises(
        UserError, match=r"^The format onnx needs onnxscript: install with `pip install 'distill\[export"
    ):
        harness.export(*words)
    assert harness.export(*words, "formats=[safetensors,torch_export]") == tmp_path / "out"


def test_a_network_that_cannot_be_captured(runs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.models.resnet import CifarResNet

    answer = CifarResNet.answer
    # looks at values, which no graph can
    monkeypatch.setattr(CifarResNet, "answer", lambda self, x: answer(self, x if x.sum().item() < 1e9 else -x))
    with pytest.raises(
        UserError, match=r"^torch\.export cannot capture this network \(.*\): choose formats=\[safetens"
    ):
        harness.export(f"source={runs('alone')}", "formats=[torch_export]")
