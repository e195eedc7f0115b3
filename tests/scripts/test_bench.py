"""The benchmark runs, its variants do the same work, and its numbers follow from its raw times."""

import json
from pathlib import Path
from statistics import median

import pytest
import torch

import harness
from distill.bench import alone, methods, pair, report, settings
from distill.bench.loops import Block, Clock
from distill.bench.plain import Laps, TakenApart, cut_off, learner_of
from distill.bench.usual import Usual
from distill.distillers import Distiller
from distill.errors import UserError
from distill.kept import KeptTeacher
from distill.run.parts import prepare
from distill.types import Batch, Output

TINY = (*harness.SMALL, *harness.RANDOM_TEACHER, "trainer.accelerator=cpu", "recipe.batch_size=128")


def prepared_run(folder: Path, *overrides: str):
    config = settings.ready(harness.configure(*TINY, *overrides), folder, random_teacher=False)
    return config, prepare(config, folder)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("bench")
    config = settings.ready(harness.configure(*TINY, "distiller=mcld"), folder, random_teacher=False)

    def unexpected(*_):
        raise AssertionError("an answer that should be kept was not")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptTeacher, "_answer", unexpected)
        return pair.measure(config, folder, blocks=2, steps=3)


# ---------------------------------------------------------------------- a whole measurement


def test_every_variant_has_its_blocks_in_turn(result) -> None:
    order = [(block["round"], block["variant"]) for block in result["raw"]["blocks"]]
    there = ["real", "plain", "kept", "usual"]
    assert order == [*((0, name) for name in there), *((1, name) for name in reversed(there))]
    for block in result["raw"]["blocks"]:
        assert block["steps"] == 3
        assert block["seconds"] > block["waiting"] >= 0
        assert (block["waiting"] > 0) == (block["variant"] == "usual")
    assert [laps["round"] for laps in result["raw"]["laps"]] == [0, 1]


def test_numbers_follow_from_raw_times(result) -> None:
    seconds = {(b["variant"], b["round"]): b["seconds"] for b in result["raw"]["blocks"]}
    waiting = {b["round"]: b["waiting"] for b in result["raw"]["blocks"] if b["variant"] == "usual"}
    expected = {
        "a/c": [seconds["usual", r] / seconds["real", r] for r in (0, 1)],
        "a/c without loader": [(seconds["usual", r] - waiting[r]) / seconds["real", r] for r in (0, 1)],
        "a/d": [seconds["usual", r] / seconds["kept", r] for r in (0, 1)],
        "c/b": [seconds["real", r] / seconds["plain", r] for r in (0, 1)],
    }
    assert set(result["ratios"]) == set(expected)
    for name, values in expected.items():
        spread = {"median": median(values), "low": min(values), "high": max(values)}
        assert result["ratios"][name] == pytest.approx(spread)
    assert result["milliseconds"]["plain"]["low"] == pytest.approx(
        1e3 * min(seconds["plain", 0], seconds["plain", 1]) / 3
    )
    assert sum(result["shares"].values()) == pytest.approx(1)


def test_result_says_what_was_measured_and_becomes_json_and_a_table(result) -> None:
    assert (result["pair"], result["distiller"], result["batch_size"]) == ("resnet8 → resnet8", "mcld", 128)
    assert result["teacher_weights"] == "random"
    assert result["steps_per_epoch"] == 12
    assert result["epoch_end"]["validation_batches"] == [2, 2]
    assert min(result["epoch_end"]["validation"], result["epoch_end"]["saving"]) > 0
    assert json.loads(json.dumps(result)) == result
    text = report.markdown([result])
    assert f"{result['ratios']['a/c']['median']:.2f} (" in text
    assert "Teachers with random weights" in text


# ---------------------------------------------------------------------- arithmetic


def test_summary_takes_ratios_within_rounds() -> None:
    seconds = {"real": (2.0, 4.0, 2.0), "usual": (10.0, 8.0, 6.0), "plain": (1.0, 4.0, 1.0)}
    blocks = [
        Block(name, number, 20, value, waiting=1.0 if name == "usual" else 0.0)
        for name, values in seconds.items()
        for number, value in enumerate(values)
    ]
    laps = [Laps(0, 5, teacher=0.04, student=0.03, loss=0.02, optimizer=0.01, data=0.005)]
    found = report.summary(blocks, laps)
    assert found["milliseconds"]["usual"] == {"median": 400.0, "low": 300.0, "high": 500.0}
    assert found["milliseconds"]["usual without loader"] == {"median": 350.0, "low": 250.0, "high": 450.0}
    assert found["ratios"]["a/c"] == {"median": 3.0, "low": 2.0, "high": 5.0}
    assert found["ratios"]["a/c without loader"] == {"median": 2.5, "low": 1.75, "high": 4.5}
    assert found["ratios"]["c/b"] == {"median": 2.0, "low": 1.0, "high": 2.0}
    assert "a/d" not in found["ratios"]
    # half of a real step of 100 ms is what the plain step has, 40 : 30 : 20 : 10; a batch takes 5 ms
    expected = {"teacher": 0.2, "student": 0.15, "loss": 0.1, "optimizer": 0.05, "data": 0.05, "framework": 0.45}
    assert found["shares"] == pytest.approx(expected)


# ---------------------------------------------------------------------- the same work in all variants


@pytest.mark.parametrize("distiller", ["kd", "mcld"])
def test_a_step_taken_apart_is_the_whole_step(tmp_path: Path, distiller: str) -> None:
    config, prepared = prepared_run(tmp_path, f"distiller={distiller}")
    whole, apart = (learner_of(prepared, config["optimizer"]) for _ in range(2))
    batches = [next(iter(prepared.data.train_dataloader()))] * 3
    taken = TakenApart(apart, iter(batches), Clock(prepared.device)).laps(number=0, steps=2)
    for batch in batches:
        whole.learn(batch)
    assert apart.done == whole.done == 3
    for one, other in zip(whole.parts.student.parameters(), apart.parts.student.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.parts.distiller.buffers(), apart.parts.distiller.buffers(), strict=True):
        assert torch.equal(one, other)
    assert min(taken.teacher, taken.student, taken.loss, taken.optimizer, taken.data) > 0


def test_an_answer_is_cut_off_once_per_tensor() -> None:
    graph = torch.ones(2, 3, requires_grad=True) * 2
    cut, ends = cut_off(Output(logits=graph, stages=(torch.zeros(1), graph), final=None))
    assert cut.stages[1] is cut.logits
    assert cut.logits.grad_fn is None
    assert not cut.stages[0].requires_grad
    (cut.logits.sum() + cut.stages[1].sum()).backward()
    assert len(ends) == 1
    assert ends[0][0] is graph
    assert torch.equal(ends[0][1].grad, torch.full((2, 3), 2.0))


def test_the_usual_recipe_learns_what_this_project_learns(tmp_path: Path) -> None:
    config, prepared = prepared_run(tmp_path, "distiller=kd", "data.padding=0")
    usual = Usual(prepared, config["optimizer"])
    try:
        images, labels, index = usual._next()
        parts = usual.learner.parts
        assert images.is_contiguous()
        assert not any(
            p.is_contiguous(memory_format=torch.channels_last) for p in [parts.student.layer1[0].conv1.weight]
        )
        part, _ = prepared.data.read()
        ours = Batch(part.images[index].permute(0, 3, 1, 2).float() / 255, part.labels[index], index)
        assert torch.equal(ours.labels, labels)
        theirs = Batch(images, labels, index)
        learner = learner_of(prepared, config["optimizer"])
        expected = _answers(learner.parts.distiller, learner.parts.student, prepared.asked, ours)
        found = _answers(parts.distiller, parts.student, parts.teacher, theirs)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        before = parts.student.state_dict()["conv1.weight"].clone()
        usual.step()
        assert usual.waiting > 0
        assert not torch.equal(parts.student.state_dict()["conv1.weight"], before)
    finally:
        usual.close()


def _answers(distiller: Distiller, student, teacher, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    answers = distiller.observe(student, teacher, batch)
    return answers[0].logits, answers[1].logits


# ---------------------------------------------------------------------- several methods


def test_methods_are_compared_with_the_reference(tmp_path: Path) -> None:
    configs = {
        name: settings.ready(harness.configure(*TINY, f"distiller={name}"), tmp_path, random_teacher=False)
        for name in ("kd", "mcld")
    }
    found = methods.compare(configs, tmp_path, reference="kd", blocks=2, steps=2)
    times = {(b["variant"], b["round"]): 500 * b["seconds"] for b in found["raw"]["blocks"]}
    over = [times["mcld", r] - times["kd", r] for r in (0, 1)]
    assert found["over"]["kd"] == {"median": 0.0, "low": 0.0, "high": 0.0}
    assert found["over"]["mcld"] == pytest.approx({"median": median(over), "low": min(over), "high": max(over)})
    assert found["memory"] is None
    assert "| mcld |" in report.methods_markdown(found)
    found["memory"] = methods.memory(configs, tmp_path)
    sizes = {name: peak["process"] or 0 for name, peak in found["memory"].items()}
    assert all(2**28 < size < 2**33 for size in sizes.values())
    assert f"| {(sizes['mcld'] - sizes['kd']) / 2**20:+.0f} |" in report.methods_markdown(found)


# ---------------------------------------------------------------------- what cannot be measured


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("recipe.accumulate=2",), "recipe.accumulate"),
        (("trainer.devices=2",), "trainer.devices"),
        (("recipe.batch_size=1000",), "smaller recipe.batch_size"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, overrides: tuple[str, ...], said: str) -> None:
    def measured() -> None:
        config = settings.ready(harness.configure(*TINY, *overrides), tmp_path, random_teacher=False)
        pair.measure(config, tmp_path, blocks=1, steps=3)

    with pytest.raises(UserError, match=said):
        measured()


def test_absent_weights_are_replaced_by_random_ones_of_usable_size(tmp_path: Path) -> None:
    absent = harness.configure(*TINY, "teacher=resnet20", f"teacher.weights={tmp_path / 'none.pth'}")
    config = settings.ready(absent, tmp_path, random_teacher=False)
    prepared = prepare(config, tmp_path)
    assert prepared.asked is not None
    logits = prepared.asked.ask(next(iter(prepared.data.train_dataloader()))).logits
    assert 0.01 < logits.std() < 100
    assert absent["teacher"]["weights"].endswith("none.pth")  # not changed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--student", "resnet9"], "student=resnet9 is unknown"),
        (["--pairs", "resnet56"], "write TEACHER-STUDENT"),
        (["recipe.nothing=1"], "no key recipe.nothing"),
    ],
)
def test_a_mistake_is_said_in_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.script("bench").main(arguments) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_short_blocks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        harness.script("bench").parser().parse_intermixed_args(["--steps", "19"])
    assert "at least 20" in capsys.readouterr().err


def test_words_for_train(tmp_path: Path) -> None:
    script = harness.script("bench")
    words = ["--student", "resnet20", "seed=1", "--root", "/data", "--device", "cpu", "recipe.lr=0.1"]
    options = script.parser().parse_intermixed_args(words)
    expected = ["student=resnet8", "data.root=/data", "trainer.accelerator=cpu", "seed=1", "recipe.lr=0.1"]
    assert script.overrides_of(options, student="resnet8") == expected


@pytest.mark.slow
def test_the_script_prints_tables_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in TINY if not word.startswith(("recipe.batch_size", "teacher=", "student=", "data="))]
    words += ["recipe.batch_size=32", "--data", "digits", "--blocks", "1", "--json", str(tmp_path / "a/bench.json")]
    script = harness.script("bench")
    alone = ["--no-memory", "--no-startup", "--profile"]
    assert script.main([*words, "--pairs", "resnet8-resnet8,resnet14-resnet8", "--distiller", "kd", *alone]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "a/bench.json").read_text())
    assert [found["pair"] for found in results] == ["resnet8 → resnet8", "resnet14 → resnet8"]
    assert all(f"| {found['pair']} | kd |" in printed for found in results)
    assert printed.count("Self CPU time total") == 2
    assert all("profile" not in found for found in results)

    networks = ["--teacher", "resnet8", "--student", "resnet8"]
    assert script.main([*words, *networks, "--distillers", "kd,dkd"]) == 0
    assert "| dkd |" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "a/bench.json").read_text())
    assert list(found["milliseconds"]) == ["kd", "dkd"]


# ---------------------------------------------------------------------- processes of their own


def test_stages_are_told_apart_by_the_log() -> None:
    lines = [
        (4.0, "[2030-01-01 00:00:00,000][distill][INFO] - precision bf16-mixed on cpu: this CPU has AMX"),
        (5.0, "[2030-01-01 00:00:01,000][distill][INFO] - teacher answers: kept in memory, up to 1.65 GB"),
        (9.0, "[2030-01-01 00:00:05,000][distill][INFO] - teacher resnet56: top-1 72.64, top-5 91.00 on the test set"),
    ]
    assert alone._stages(lines, 10.0) == {"imports": 4.0, "preparation": 5.0, "first step": 1.0}
    assert alone._stages(lines[:2], 10.0) == {"imports": 4.0, "preparation": None, "first step": None}


@pytest.mark.slow
def test_memory_and_startup_are_measured(tmp_path: Path) -> None:
    overrides = [*TINY, "distiller=mcld"]
    config = settings.ready(settings.composed(harness.CONF, overrides), tmp_path, random_teacher=False)
    found = alone.memory(config, tmp_path, list(report.NAMES))
    assert set(found) == set(report.NAMES)
    for peak in found.values():
        assert peak["process"] > 2**26
        assert peak["device"] is None
    start = alone.startup(harness.ROOT / "src/train.py", overrides)
    assert all(seconds is not None and seconds > 0 for seconds in start.values())
    assert start["total"] == pytest.approx(start["imports"] + start["preparation"] + start["first step"])


def test_a_command_without_a_first_step_is_an_error() -> None:
    with pytest.raises(UserError, match="no first step"):
        alone.startup(harness.ROOT / "src/train.py", ["student=resnet9"])
