"""The flagship's one command: its runs, its slices, what it keeps and what it says."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distill
import harness
from distill.checkpoint import read_metadata

SCRIPT = harness.ROOT / "scripts" / "flagship.py"
WEIGHTS = "weights/digits/resnet32x4.safetensors"
NARROW = "[4,4,8,8]"
ON_DIGITS = ("data=digits", "data.size=16", "trainer.precision=32-true", "trainer.accelerator=cpu")
TEACHER_ALONE = (f"student.widths={NARROW}",)
STUDENT_ALONE = (f"teacher.widths={NARROW}", f"student.widths={NARROW}", "teacher.allow_chance=true")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as Python does for a script
    spec = importlib.util.spec_from_file_location("flagship_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------- what is run


def words_of(script, *arguments: str) -> dict[str, list[str]]:
    stages = script.stages(script.parser().parse_args(arguments))
    return {stage.name: script.command(stage) for stage in stages if stage is not None}


def configure(words: list[str]) -> dict:
    return harness.configure(*(word for word in words if not word.startswith("hydra.")))


def test_the_teacher_is_trained_by_its_short_recipe(script) -> None:
    config = configure(words_of(script)["teacher"])
    assert config["names"] == {"data": "cifar100", "teacher": "none", "student": "resnet32x4", "distiller": "none"}
    assert config["optimizer"]["nesterov"] is True
    assert config["recipe"] == harness.configure("recipe=cifar100_short")["recipe"]


def test_the_student_is_the_papers(script) -> None:
    config = configure(words_of(script)["student"])
    usual = harness.configure("distiller=mcld", "teacher=resnet32x4", "student=resnet8x4")
    weights = Path("outputs/published/weights/cifar100/resnet32x4.safetensors")
    assert config == {
        **usual,
        "teacher": {**usual["teacher"], "weights": str(weights.resolve())},
        "checkpoint": {**usual["checkpoint"], "minutes": 1},
    }
    assert (config["recipe"]["epochs"], config["recipe"]["batch_size"]) == (240, 64)
    assert harness.configure("experiment=flagship") == usual


@pytest.mark.parametrize(("epochs", "end", "warmup"), [(100, 100, 5), (20, 20, 1), (200, 200, 5)])
def test_the_short_recipe_ends_with_the_run(epochs: int, end: float, warmup: float) -> None:
    schedule = harness.configure("recipe=cifar100_short", f"recipe.epochs={epochs}")["recipe"]["schedule"]
    assert (schedule["epochs"], schedule["warmup_epochs"]) == pytest.approx((end, warmup))


def test_overrides_go_where_they_belong(script) -> None:
    words = words_of(
        script,
        *("--set", "data.root=/data", "--set-teacher", "recipe.lr=.2", "--set-student", "distiller.temperature=.1"),
        *("--teacher-epochs", "3", "--student-epochs", "4", "--device", "cpu", "--root", 'a "b"=c, d'),
    )
    teacher, student = configure(words["teacher"]), configure(words["student"])
    assert (teacher["recipe"]["lr"], student["recipe"]["lr"]) == (0.2, 0.05)
    assert (teacher["recipe"]["epochs"], student["recipe"]["epochs"]) == (3, 4)
    assert student["distiller"]["temperature"] == 0.1
    for config in (teacher, student):
        assert config["data"]["root"] == "/data"
        assert config["trainer"]["accelerator"] == "cpu"
    from hydra.core.override_parser.overrides_parser import OverridesParser

    folder = OverridesParser.create().parse_override(words["student"][-1])
    assert (folder.get_key_element(), folder.value()) == ("hydra.run.dir", str(Path('a "b"=c, d/student').resolve()))


def test_a_teacher_that_is_there_is_not_trained(script) -> None:
    words = words_of(script, "--teacher-weights", "a.pth")
    assert words.keys() == {"student"}
    assert configure(words["student"])["teacher"]["weights"] == str(Path("a.pth").resolve())


# ---------------------------------------------------------------------- slices, with a stand-in for src/train.py

STAND_IN = """
import json, pathlib, shutil, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(json.loads(words.get("resume") or words["hydra.run.dir"]))
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as file:
    file.write(folder.name + " " + ("resumes" if "resume" in words else "begins") + "\\n")
if (here / "fail").exists():
    sys.exit("No such data.")
folder.mkdir(parents=True, exist_ok=True)
if (here / f"stop_{folder.name}").exists():
    (folder / "metrics.csv").write_text("epoch,test/top1\\n1,10\\n2,20\\n")
    (folder / "last.ckpt").touch()
    time.sleep(600)
shutil.copytree(here / folder.name, folder, dirs_exist_ok=True)
"""


def content(pair: tuple[str, str], distiller: str, best: float, last: float, **more) -> str:
    names = {"data": "cifar100", "teacher": pair[0], "student": pair[1], "distiller": distiller}
    scores = {"best": {"epoch": 2, "top1": best}, "last": {"epoch": 3, "top1": last}}
    rest = {"format": 1, "status": "finished", "variant": "", "seed": 0, "epochs": 3, "evaluated_on": "test"}
    measured = {"seconds": 90.0, "images_per_second": 1234.4, "device": "a GPU", "precision": "bf16-mixed"}
    return json.dumps({"names": names, "teacher": None, **rest, **scores, **measured, **more})


@pytest.fixture
def place(script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where runs end at once unless `stop_<run>` or `fail` is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(STAND_IN)
    monkeypatch.setattr(script, "TRAIN", tmp_path / "train.py")
    seen = {"top1": 78.49, "weights": "/a/b.safetensors"}
    for name, text in {
        "teacher": content(("none", "resnet32x4"), "none", 78.6, 78.5),
        "student": content(("resnet32x4", "resnet8x4"), "mcld", 77.0, 76.9, teacher=seen),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
        (tmp_path / name / "metrics.csv").write_text("epoch,test/top1\n1,10\n2,20\n3,30\n")
    store(tmp_path, torch.tensor([1.0, 0.1, 1e-9]))
    return tmp_path


def store(place: Path, weight: torch.Tensor) -> None:
    from distill.checkpoint import save_safetensors

    state = {"fc.weight": weight, "bn.num_batches_tracked": torch.tensor(70_000)}
    save_safetensors(state, place / "teacher/student.safetensors", {"distill": "recipe", "top1": "78.50"})


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines() if (place / "calls").exists() else []


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_one_call_does_all_and_a_second_nothing(script, place: Path, capsys) -> None:
    assert script.main([]) == 0
    assert calls(place) == ["teacher begins", "student begins"]
    told = capsys.readouterr().out
    # 77.89 and 79.42 are printed in the paper's Table 2
    for line in (
        "| teacher resnet32x4 | 3 | 78.60 (2) | 78.50 | 79.42 | 1.5 | 1,234 | a GPU, bf16-mixed |",
        "| student resnet8x4, mcld | 3 | 77.00 (2) | 76.90 | 77.89 | 1.5 | 1,234 | a GPU, bf16-mixed |",
        "student - teacher: best -1.49, last -1.59, paper -1.53; the teacher that the student saw has top-1 78.49.",
    ):
        assert line in told.splitlines()
    of = {"none-resnet32x4/3_epochs/none_seed0", "resnet32x4-resnet8x4/3_epochs/mcld_seed0"}
    results = {f"cifar100/{run}/{file}" for run in of for file in ("result.json", "metrics.csv")}
    assert files(place / "outputs/published") == results | {"weights/cifar100/resnet32x4.safetensors"}

    assert script.main([]) == 0
    assert len(calls(place)) == 2
    assert capsys.readouterr().out.splitlines()[-8:-1] == told.splitlines()[-8:-1]


def test_the_kept_weights_are_halves_of_the_trained(script, place: Path) -> None:
    script.main([])
    path = place / "outputs/published/weights/cifar100/resnet32x4.safetensors"
    kept = load_file(path)
    assert kept["fc.weight"].dtype == torch.float16
    assert torch.equal(kept["fc.weight"], torch.tensor([1.0, 0.1, 1e-9]).half())
    assert kept["bn.num_batches_tracked"].item() == 70_000
    metadata = read_metadata(path)
    assert metadata.items() >= {"distill": "recipe", "top1": "78.50", "best_top1": "78.60", "epochs": "3"}.items()
    assert str(place) not in json.dumps(metadata)


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_slice_stops_the_run_and_the_next_goes_on(script, place: Path, capsys, monkeypatch, which: str) -> None:
    folder = place / "outputs/flagship" / which
    limits = []

    class Process(subprocess.Popen):
        """A run whose time is over as soon as there is a checkpoint."""

        def wait(self, timeout=None):
            if not limits and wait_for(folder / "last.ckpt", self):
                limits.append(timeout)
                raise subprocess.TimeoutExpired("train.py", timeout)
            return super().wait(timeout)

    monkeypatch.setattr(script.subprocess, "Popen", Process)
    (place / f"stop_{which}").touch()
    assert script.main(["--minutes", "5"]) == 75
    answer = capsys.readouterr()
    assert "| paper |" not in answer.out
    assert f"the {which} has a checkpoint after epoch 2 or later" in answer.err
    assert answer.err.count("\n") == 1
    assert 0 < limits[0] < 300 - script.GRACE
    (place / f"stop_{which}").unlink()
    before = len(calls(place))
    assert script.main(["--minutes", "5"]) == 0
    rest = ["teacher resumes", "student begins"] if which == "teacher" else ["student resumes"]
    assert calls(place)[before:] == rest


def test_no_time_is_no_start(script, place: Path) -> None:
    assert script.main(["--minutes", "0.1"]) == 75
    assert calls(place) == []


def test_the_end_of_the_script_ends_its_run(script, place: Path, capsys) -> None:
    (place / "stop_teacher").touch()
    words = ["-c", f"import sys, flagship, pathlib; flagship.TRAIN = pathlib.Path({str(place / 'train.py')!r})"]
    words[1] += "\nsys.exit(flagship.main([]))"
    path = os.pathsep.join(map(str, (SCRIPT.parent, harness.ROOT / "src")))
    process = subprocess.Popen([sys.executable, *words], env={**os.environ, "PYTHONPATH": path})
    assert wait_for(place / "outputs/flagship/teacher/last.ckpt", process)
    assert script.main([]) == 1  # a second one leaves the folder alone
    assert "Another process is at work in outputs/flagship" in capsys.readouterr().err
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    (place / "stop_teacher").unlink()
    assert script.main([]) == 0
    assert calls(place) == ["teacher begins", "teacher resumes", "student begins"]


def wait_for(path: Path, process: "subprocess.Popen") -> bool:
    """Whether a file comes to be while a process lives."""
    deadline = time.monotonic() + 300
    while not path.exists():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


# ---------------------------------------------------------------------- mistakes


def refused(script, capsys, *arguments: str) -> str:
    assert script.main(list(arguments)) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_another_command_in_the_same_folder_is_refused(script, place: Path, capsys, monkeypatch) -> None:
    script.main(["--student-epochs", "3"])
    capsys.readouterr()
    said = refused(script, capsys, "--student-epochs", "4")
    assert "student holds a run of another command (recipe.epochs=3, recipe.epochs=4 differs)" in said
    assert "flagship/student holds a run of another command (its teacher differs)" in refused(
        script, capsys, "--teacher-weights", "teacher/student.safetensors", "--student-epochs", "3"
    )
    # where things lie and run may change
    assert script.main(["--student-epochs", "3", "--set", "data.root=elsewhere", "--device", "cpu"]) == 0


def test_what_never_began_may_be_asked_for_otherwise(script, place: Path, capsys) -> None:
    (place / "fail").touch()
    assert "The teacher's run ended with exit code 1 and says why above" in refused(script, capsys, "--set", "data=x")
    (place / "fail").unlink()
    assert script.main(["--teacher-epochs", "3"]) == 0


def test_a_teacher_that_was_kept_before_is_not_replaced(script, place: Path, capsys) -> None:
    script.main([])
    kept = place / "outputs/published/weights/cifar100/resnet32x4.safetensors"
    before = kept.read_bytes()
    done = len(calls(place))
    capsys.readouterr()
    assert "holds another teacher: use it with --teacher-weights" in refused(script, capsys, "--root", "again")
    assert len(calls(place)) == done  # said before the minutes of a training
    store(place, torch.tensor([2.0]))
    (place / "outputs/flagship/teacher/student.safetensors").write_bytes(
        (place / "teacher/student.safetensors").read_bytes()
    )
    assert "holds another teacher" in refused(script, capsys)
    assert kept.read_bytes() == before
    assert script.main(["--root", "again", "--teacher-weights", str(kept)]) == 0
    assert calls(place)[done:] == ["student begins"]


def test_what_float16_or_git_cannot_hold_is_not_kept(script, place: Path, capsys, monkeypatch) -> None:
    store(place, torch.tensor([1e6]))
    assert "fc.weight holds numbers beyond 65,504" in refused(script, capsys)
    store(place, torch.ones(1000))
    monkeypatch.setattr(script, "MOST", 1999)
    (place / "outputs/flagship/teacher/student.safetensors").write_bytes(
        (place / "teacher/student.safetensors").read_bytes()
    )
    assert "more than the" in refused(script, capsys)
    assert not (place / "outputs/published").exists()


def test_other_mistakes(script, place: Path, capsys) -> None:
    assert "--teacher-weights nowhere.pth does not exist." in refused(
        script, capsys, "--teacher-weights", "nowhere.pth"
    )
    for arguments in (["--minutes", "0"], ["--student-epochs", "-1"]):
        with pytest.raises(SystemExit):
            script.main(arguments)
        assert "invalid positive" in capsys.readouterr().err
    (place / "teacher/result.json").write_text('{"format": 1, "status": "running"}')
    assert "does not count: its run is not finished but running" in refused(script, capsys)


# ---------------------------------------------------------------------- the real thing


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT / "src"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(SCRIPT), "--teacher-epochs", "2", "--student-epochs", "2", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, cwd=folder, env=environment, **pipes)


def options(name: str, words: tuple[str, ...]) -> list[str]:
    return [part for word in words for part in (name, word)]


@pytest.mark.slow
def test_two_epochs_in_slices(tmp_path: Path) -> None:
    arguments = [
        *options("--set", (*ON_DIGITS, "checkpoint.steps=1")),
        *options("--set-teacher", TEACHER_ALONE),
        *options("--set-student", STUDENT_ALONE),
    ]
    short = start(tmp_path, *arguments, "--minutes", "0.18")  # of which a run gets a second: none has begun by then
    told, _ = short.communicate()
    assert short.returncode == 75, told
    assert "the teacher has no checkpoint yet; the student has no checkpoint yet. Repeat the command." in told

    stopped = start(tmp_path, *arguments)
    runs = tmp_path / "outputs/flagship"
    assert wait_for(runs / "student/last.ckpt", stopped), stopped.communicate()[0]
    stopped.send_signal(signal.SIGTERM)
    told, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 75, told
    assert "the teacher is finished; the student has a checkpoint" in told
    taught = (runs / "teacher/result.json").stat().st_mtime_ns

    rest = start(tmp_path, *arguments, "--minutes", "60")
    told, _ = rest.communicate()
    assert rest.returncode == 0, told
    assert "student: goes on in" in told
    assert (runs / "teacher/result.json").stat().st_mtime_ns == taught
    check(tmp_path, told, data="digits", classes=10)


@pytest.mark.slow
def test_two_epochs_of_the_real_pair(tmp_path: Path, cifar_root: Path) -> None:
    few = ("+trainer.limit_train_batches=2", "+trainer.limit_val_batches=2")
    arguments = [*options("--set", (f"data.root={cifar_root}", *few)), "--set-student", "teacher.allow_chance=true"]
    process = start(tmp_path, *arguments, "--device", "cpu")
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert "| 79.42 |" in told
    assert "| 77.89 |" in told
    check(tmp_path, told, data="cifar100", classes=100)


def check(folder: Path, told: str, *, data: str, classes: int) -> None:
    """What a finished call has left in a folder."""
    published = folder / "outputs/published"
    (teacher,) = (published / data).glob("none-resnet32x4/2_epochs/none_*experiment-flagship_teacher*_seed0")
    (student,) = (published / data).glob("resnet32x4-resnet8x4/2_epochs/mcld*_seed0")
    results = [json.loads((run / "result.json").read_text()) for run in (teacher, student)]
    assert [len((run / "metrics.csv").read_text().splitlines()) for run in (teacher, student)] == [3, 3]
    weights = published / "weights" / data / "resnet32x4.safetensors"
    assert weights.stat().st_size <= 16 * 2**20
    assert {value.dtype for value in load_file(weights).values()} == {torch.float16, torch.int64}
    trained = load_file(folder / "outputs/flagship/teacher/student.safetensors")
    rebuilt = distill.load(weights)
    assert all(torch.equal(value, trained[key].half().to(value)) for key, value in rebuilt.state_dict().items())
    assert rebuilt(torch.rand(2, 3, 16, 16)).logits.shape == (2, classes)
    best, seen = results[1]["best"]["top1"], results[1]["teacher"]["top1"]
    assert f"student - teacher: best {best - seen:+.2f}" in told
    assert f"top-1 {seen:.2f}." in told
    assert results[0]["last"]["top1"] == pytest.approx(seen, abs=1.0) or data == "cifar100"  # few batches there
