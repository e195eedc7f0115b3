"""How long a sweep will take: what is measured, and what follows from it."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import harness
from distill.errors import UserError
from distill.sweep import estimate as module
from distill.sweep import measure as measuring
from distill.sweep.estimate import duration, estimate, guess, kind_of, representatives, total
from distill.sweep.jobs import Job
from distill.sweep.measure import Cost, measure

COST = Cost(start=10, batch=0.5, known=0.2, evaluation=3, batches=100, views=162, device="a chip")
TAUGHT = (*harness.SMALL, *harness.RANDOM_TEACHER)


def job(*words: str) -> Job:
    return Job(list(words), harness.configure(*words), "0" * 16, Path("nowhere"))


# ---------------------------------------------------------------------- measuring


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits have few steps."""
    monkeypatch.setattr(measuring, "WORTH_IT", 0)
    monkeypatch.setattr(measuring, "WARM_UP", 1)


@pytest.mark.usefixtures("worth_it")
def test_steps_are_really_trained_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cost = measure(harness.configure(*TAUGHT, "distiller=kd", "teacher.keep=disk"), steps=3, epochs=9)
    assert isinstance(cost, Cost)
    assert cost.batches == 6
    assert cost.views == 25
    assert min(cost.start, cost.batch, cost.known, cost.evaluation) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("worth_it")
def test_the_run_is_measured_as_far_as_it_goes() -> None:
    config = harness.configure(*TAUGHT, "distiller=kd", "+trainer.limit_train_batches=2", "trainer=ddp")
    before = json.dumps(config)
    cost = measure(config, steps=50, epochs=1)
    assert isinstance(cost, Cost)
    assert cost.batches == 2
    assert json.dumps(config) == before


def test_what_is_shorter_than_measuring_is_not_measured() -> None:
    assert measure(harness.configure(*TAUGHT, "distiller=kd"), steps=50, epochs=9) == 54


def test_a_mistake_is_said_as_by_the_run() -> None:
    with pytest.raises(UserError, match="needs a teacher"):
        measure(harness.configure(*harness.SMALL, "distiller=kd", "teacher=none"), steps=50, epochs=9)


# ---------------------------------------------------------------------- kinds


def test_seeds_and_sizes_of_numbers_cost_the_same_and_weights_of_0_less() -> None:
    def kind(*words: str) -> tuple[str, str]:
        return kind_of(harness.configure("distiller=mcld", "teacher=resnet56", "student=resnet20", *words))

    usual = kind()
    for word in ("seed=1", "distiller.temperature=.1", "teacher.weights=x"):
        assert kind(word) == usual, word
    for word in ("distiller.queue_length=9", "distiller.sample_weight=0", "optimizer=dot"):
        assert kind(word)[0] == usual[0]
        assert kind(word)[1] != usual[1], word
    for word in ("student=resnet32", "recipe.batch_size=128"):
        assert kind(word)[0] != usual[0], word
        assert kind(word)[1] == usual[1] or "resnet" in word


def test_of_many_each_pair_and_each_method_is_measured_once() -> None:
    kinds = [(pair, method) for pair in "abc" for method in "xyz"]
    assert representatives(kinds) == [("a", "x"), ("a", "y"), ("a", "z"), ("b", "x"), ("c", "x")]


def test_the_others_follow_from_them() -> None:
    def cost(batch: float) -> Cost:
        return Cost(start=1, batch=batch, known=batch / 2, evaluation=batch, batches=10, views=None, device="")

    costs = {("a", "x"): cost(1), ("a", "y"): cost(3), ("b", "x"): cost(10)}
    found = guess(("b", "y"), costs)
    assert found is not None
    assert (found.batch, found.known, found.evaluation) == (30, 15, 10)
    assert guess(("a", "y"), costs) == cost(3)
    assert guess(("b", "z"), costs) == cost(10)  # of a method that could not be measured
    assert guess(("c", "x"), costs) is None


# ---------------------------------------------------------------------- sums


def hours(*jobs: Job, cost: Cost = COST) -> float:
    kinds: dict[Any, list[Job]] = {}
    for one in jobs:
        assert one.config is not None
        kinds.setdefault(kind_of(one.config), []).append(one)
    seconds, unknown = total(kinds, dict.fromkeys(kinds, cost))
    assert unknown == 0
    return seconds


def test_all_runs_one_after_the_other() -> None:
    two = [job("distiller=kd", "recipe.epochs=4", f"seed={seed}") for seed in (0, 1)]
    assert hours(*two) == pytest.approx(2 * (10 + 4 * (100 * 0.5 + 3)))


def test_of_a_half_finished_run_what_is_left(tmp_path: Path) -> None:
    one = job("distiller=kd", "recipe.epochs=4")
    one.state, one.folder = "begun", tmp_path
    (tmp_path / "metrics.csv").write_text("epoch\n1\n2\n3\n")
    assert hours(one) == pytest.approx(10 + 1 * (100 * 0.5 + 3))


def test_kept_answers_are_asked_for_once() -> None:
    """By the first method of a seed; a teacher of its own asks again."""
    keep = ("teacher.keep=disk", "recipe.epochs=2")
    one, other = (job(f"distiller={name}", *keep) for name in ("kd", "dkd"))
    asked, steps = 162 * (1 - (161 / 162) ** 2), 100 * 2
    first = 10 + 2 * 3 + steps * (asked / 2 * 0.5 + (1 - asked / 2) * 0.2)
    assert hours(one) == pytest.approx(first)
    assert hours(one, other) == pytest.approx(first + 10 + 2 * 3 + steps * 0.2)
    assert hours(one, job("distiller=kd", "teacher=resnet56", *keep)) == pytest.approx(2 * first)
    memory = [job("distiller=kd", "teacher.keep=memory", "recipe.epochs=2", f"seed={seed}") for seed in (0, 1)]
    assert hours(*memory) == pytest.approx(2 * first)


@pytest.mark.parametrize(
    ("seconds", "said"), [(5, "5 seconds"), (100, "2 minutes"), (3600, "60 minutes"), (9000, "2.5 hours")]
)
def test_a_duration_is_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# ---------------------------------------------------------------------- the sentence


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(config: dict[str, Any], *, steps: int, epochs: int) -> Cost:
        asked.append(config["names"]["distiller"])
        if config["names"]["distiller"] == "at":
            raise UserError("It cannot be.")
        return COST

    monkeypatch.setattr(module, "measure", fake)
    master = OmegaConf.create({"sweep": {"estimate": 50}, "hydra": {"sweep": {"dir": str(tmp_path)}, "launcher": {}}})
    pair = ("teacher=resnet56", "student=resnet20", "recipe.epochs=4")
    jobs = [job(f"distiller={name}", *pair, f"seed={seed}") for name in ("kd", "at") for seed in (0, 1)]
    text = estimate(jobs, master)
    assert asked == ["kd", "at"]
    assert "resnet56 → resnet20, kd: 500 ms a step (200 with known answers), 100 steps" in text
    assert "resnet56 → resnet20, at cannot be measured: It cannot be." in text
    assert "About 15 minutes on this device (a chip), one run after the other." in text
    estimate(jobs[:2], master)
    assert asked == ["kd", "at"]
    monkeypatch.setattr(module, "SHARE", 0)  # as if the runs were short
    estimate([*jobs, job("distiller=dkd", *pair), job("distiller=dkd", "teacher=resnet110", *pair[1:])], master)
    assert asked == ["kd", "at", "dkd"]
    master.sweep.estimate = 0
    assert estimate(jobs, master) == ""
