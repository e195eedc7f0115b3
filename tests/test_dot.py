"""DOT against its formula written as loops, and in runs: ranks, micro-batches, resuming, what it refuses."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import harness
from distill.distillers import Distiller
from distill.dot import DOT
from distill.errors import UserError
from distill.types import Spec, Step
from run.test_ranks import TWO, UNEVEN, assert_same_run, two_ranks, worker  # noqa: F401

NUMBERS = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Tiny(nn.Module):
    """A part of each loss alone, a shared part, and one that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 5, dtype=torch.float64)
        self.of_task = nn.Linear(5, 3, dtype=torch.float64)
        self.of_distillation = nn.Linear(5, 2, dtype=torch.float64)
        self.of_none = nn.Linear(2, 2, dtype=torch.float64)

    def losses(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.shared(images).tanh()
        return self.of_task(hidden).square().mean(), (self.of_distillation(hidden) - 1).square().mean()


def steps_by_loops(network, batches, *, lr, momentum, delta, weight_decay, sign=1):
    """Parameters after each batch, from lists of plain numbers and two separate backward passes."""
    network = copy.deepcopy(network)
    values = {name: p.detach().flatten().tolist() for name, p in network.named_parameters()}
    memory = {name: {"task": [0.0] * len(v), "distillation": [0.0] * len(v)} for name, v in values.items()}
    for images in batches:
        gradients = []
        for which in (0, 1):
            network.zero_grad()
            network.losses(images)[which].backward()
            flat = {n: None if p.grad is None else p.grad.flatten().tolist() for n, p in network.named_parameters()}
            gradients.append(flat)
        for name, numbers in values.items():
            task, distillation = gradients[0][name], gradients[1][name]
            alone = task is None or distillation is None
            for i, p in enumerate(list(numbers)):
                moved = 0.0
                if task is not None:
                    mu = momentum if alone else momentum - delta
                    memory[name]["task"][i] = mu * memory[name]["task"][i] + sign * task[i] + weight_decay * p
                    moved += memory[name]["task"][i]
                if distillation is not None:
                    mu = momentum if alone else momentum + delta
                    decay = weight_decay * p if alone else 0.0
                    memory[name]["distillation"][i] = (
                        mu * memory[name]["distillation"][i] + sign * distillation[i] + decay
                    )
                    moved += memory[name]["distillation"][i]
                numbers[i] = p - lr * moved
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(torch.tensor(values[name], dtype=p.dtype).view_as(p))
        yield {name: p.detach().clone() for name, p in network.named_parameters()}


def batches(count: int = 4) -> list[Tensor]:
    return [torch.randn(6, 4, dtype=torch.float64) for _ in range(count)]


def one_step(optimizer: DOT, network: Tiny, images: Tensor) -> None:
    optimizer.zero_grad()
    optimizer.backward_apart(*network.losses(images))
    optimizer.step()


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("numbers", [NUMBERS, NUMBERS | {"weight_decay": 0.0}, NUMBERS | {"delta": 0.0}])
def test_four_steps_equal_the_formula(numbers, maximize):
    network, data = Tiny(), batches()
    optimizer = DOT(network.parameters(), **numbers, maximize=maximize)
    for images, expected in zip(
        data, steps_by_loops(network, data, **numbers, sign=-1 if maximize else 1), strict=True
    ):
        one_step(optimizer, network, images)
        for name, p in network.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-11, atol=1e-13, msg=name)


def test_without_a_difference_it_is_sgd():
    network, data = Tiny(), batches(6)
    other = copy.deepcopy(network)
    ours = DOT(network.parameters(), **NUMBERS | {"delta": 0.0})
    theirs = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    schedules = [LambdaLR(optimizer, lambda step: 0.5**step) for optimizer in (ours, theirs)]
    for images in data:
        one_step(ours, network, images)
        theirs.zero_grad()
        sum(other.losses(images)).backward()
        theirs.step()
        for schedule in schedules:
            schedule.step()
        for p, q in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_a_plain_backward_pass_is_the_tasks():
    network, images = Tiny(), batches(1)[0]
    other = copy.deepcopy(network)
    ours, theirs = DOT(network.parameters(), **NUMBERS), torch.optim.SGD(other.parameters(), lr=0.05, weight_decay=0.01)
    for optimizer, which in ((ours, network), (theirs, other)):
        sum(which.losses(images)).backward()
        optimizer.step()
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_gradients_add_up_until_they_are_zeroed_and_a_closure_is_called():
    network, (first, second) = Tiny(), batches(2)
    other = copy.deepcopy(network)
    parts, whole = DOT(network.parameters(), **NUMBERS), DOT(other.parameters(), **NUMBERS)
    one_step(parts, network, first)
    one_step(whole, other, first)

    def closure() -> Tensor:
        parts.zero_grad()
        for images in (first, second):
            parts.backward_apart(*(loss / 2 for loss in network.losses(images)))
        return torch.tensor(7.0)

    assert parts.step(closure) == 7
    one_step(whole, other, torch.cat([first, second]))
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_loaded_state_goes_on_with_equal_bits():
    network, data = Tiny(), batches()
    optimizer = DOT(network.parameters(), **NUMBERS)
    for images in data[:2]:
        one_step(optimizer, network, images)
    other = copy.deepcopy(network)
    resumed = DOT(other.parameters(), **NUMBERS | {"lr": 1.0})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for images in data[2:]:
        one_step(optimizer, network, images)
        one_step(resumed, other, images)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), other.parameters(), strict=True))
    copied = copy.deepcopy(optimizer)
    copied.zero_grad()
    copied.step()


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"weight_decay": -1.0}, {"delta": -0.1}, {"delta": 0.1}, {"momentum": 0.05}]
)
def test_numbers_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        DOT(Tiny().parameters(), **NUMBERS | wrong)


# ---------------------------------------------------------------------- in runs

# no BatchNorm, so that neither ranks nor micro-batches change what a row gives
PLAIN = (
    *(s for s in harness.SMALL if "widths" not in s),
    *("student._target_=networks.NoNorm", "+student.width=8", "~student.depth", "~student.widths"),
    *harness.RANDOM_TEACHER,
)


class Guided(Distiller):
    """Cross-entropy, and a projector that the distillation loss alone reaches."""

    needs = "features"

    def __init__(self, spec: Spec, *, ce_weight: float) -> None:
        super().__init__()
        assert spec.teacher
        self.ce_weight = ce_weight
        self.projector = nn.Linear(spec.student.pooled or 0, spec.teacher.pooled or 0)

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.student, step.teacher
        ce = F.cross_entropy(student.logits, step.batch.labels)
        return {"ce": self.ce_weight * ce, "guide": (self.projector(student.pooled) - teacher.pooled).square().mean()}


GUIDED = ("distiller=none", "distiller._target_=test_dot.Guided")


def run(folder: Path, *overrides: str, kill_at: int | None = None) -> Path:
    harness.execute(harness.configure(*PLAIN, *overrides), folder, kill_at=kill_at)
    return folder


def assert_same_student(one: Path, other: Path, *, tolerance: float) -> None:
    a, b = (load_file(folder / "student.safetensors") for folder in (one, other))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", ["kd", "dkd"])
def test_a_run_without_a_difference_is_one_with_sgd_and_any_other_is_not(method: str, tmp_path: Path) -> None:
    sgd = run(tmp_path / "sgd", f"distiller={method}", "recipe.epochs=1")
    dot = run(tmp_path / "dot", f"distiller={method}", "recipe.epochs=1", "optimizer=dot", "optimizer.delta=0.0")
    assert_same_student(sgd, dot, tolerance=1e-6)
    apart = run(tmp_path / "apart", f"distiller={method}", "recipe.epochs=1", "optimizer=dot")
    with pytest.raises(AssertionError):
        assert_same_student(sgd, apart, tolerance=1e-4)


def test_micro_batches_take_the_steps_of_whole_ones(tmp_path: Path) -> None:
    """The last of an epoch's batches falls into 128 and 30 rows."""
    settings = ("distiller=kd", "optimizer=dot", "recipe.epochs=1")
    whole, parts = run(tmp_path / "whole", *settings), run(tmp_path / "parts", *settings, "recipe.accumulate=2")
    assert_same_student(whole, parts, tolerance=1e-6)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(
    ("settings", "buffers"),
    [
        (("distiller=dkd",), 2 * 6),
        (("distiller=dkd", "recipe.batch_size=21", "recipe.accumulate=3"), 2 * 6),
        (GUIDED, 2 * 4 + 2 + 2),  # two of both losses' layers, the student's classifier, the projector
    ],
)
def test_two_ranks_equal_one_process(settings: tuple[str, ...], buffers: int, tmp_path: Path) -> None:
    settings = (*UNEVEN, "optimizer=dot", *settings)
    one, two = run(tmp_path / "one", *settings), run(tmp_path / "two", *settings, *TWO)
    assert_same_run(one, two, tolerance=2e-6)
    state, other = harness.state(one), harness.state(two)
    names = [name for name in state if name.startswith("optimizer.")]
    assert len(names) == buffers
    for name in names:
        torch.testing.assert_close(state[name], other[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    settings = ("distiller=kd", "optimizer=dot", "trainer.precision=auto", "checkpoint.steps=1")
    whole = run(tmp_path / "whole", *settings)
    run(tmp_path / "killed", *settings, kill_at=8)
    assert not (tmp_path / "killed/result.json").exists()
    one, other = harness.state(whole), harness.state(run(tmp_path / "killed", *settings))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("distiller=mcld",), r"^DOT weighs .* MCLD has only instance, sample, category: choose optimizer=sgd, "),
        (("distiller=none",), r"^DOT weighs .* NoDistillation has only ce: "),
        (("distiller=kd", "trainer.gradient_clip_val=1.0"), r"^DOT takes two gradients, .*gradient_clip_val"),
        (("distiller=kd", "optimizer.delta=0.2"), r"^The optimizer refuses its numbers: momentum=0.9 less and plus"),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_first_step(
    overrides: Sequence[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run(tmp_path, "optimizer=dot", *overrides)
    assert not (tmp_path / "last.ckpt").exists()


def test_scaled_half_precision_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "precision", "16-mixed")  # needs a GPU to be asked for
    with pytest.raises(UserError, match=r"^DOT takes two gradients, .*choose bf16-mixed or 32-true\.$"):
        run(tmp_path, "distiller=kd", "optimizer=dot")
