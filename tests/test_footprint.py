"""The memory of a step, as rehearsed: against real steps, by hand, and without a trace."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import harness
from distill.build import build_distiller, freeze
from distill.capacity import free_memory, total_memory
from distill.distillers.kd import KD
from distill.errors import UserError
from distill.footprint import Ledger, _put, bytes_of, kept_per_number, step_peak, tensors
from distill.models.adapters import TimmNetwork
from distill.models.network import Network
from distill.models.resnet import CifarResNet
from distill.numerics import autocast
from distill.optim import AdamW
from distill.run import memory, train
from distill.run.parts import prepare
from distill.types import Batch, Spec, Step

CPU = torch.device("cpu")
ROWS, SIZE, CLASSES = 8, 32, 7
LABELS = torch.arange(40) % CLASSES


def resnet(width: int = 4) -> Network:
    torch.manual_seed(0)
    return CifarResNet(depth=8, widths=[width, width, 2 * width, 2 * width], num_classes=CLASSES)


def parts(name: str, student: Network | None = None):
    """Student, teacher, prepared method and what that was built from."""
    small, large = student or resnet(), freeze(resnet(8))
    node = harness.configure(f"distiller={name}")["distiller"]
    spec = Spec(small.shapes(SIZE), large.shapes(SIZE), CLASSES, len(LABELS), LABELS, ROWS)
    method = build_distiller(node, spec, seed=0)
    method.prepare(small, large)
    return small, large, method, spec


def rehearsed(small, large, method, spec, precision="32-true"):
    return step_peak(small, large, method, spec, rows=ROWS, size=SIZE, precision=precision, device=CPU)


def really(small, large, method, precision="32-true"):
    """The same step, computed."""
    small, large, method = copy.deepcopy((small, large, method))
    ledger = Ledger(small, large, method)
    small.train()
    with ledger:
        images = torch.zeros(ROWS, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        index = torch.zeros(ROWS, dtype=torch.long)
        batch = Batch(images, index, index, strong=images.clone() if method.views == 2 else None)
        with autocast(precision, CPU):
            terms = method(Step(batch, *method.observe(small, large, batch), epoch=1, step=0))
        torch.stack(list(terms.values())).sum().backward()
    return ledger.peak


def test_a_ledger_by_hand():
    x, ledger = torch.zeros(250), Ledger()
    with ledger:
        a = x + 1  # 1000 bytes
        b = a * 2
        del a
        c = b.view(10, 25)  # no memory of its own
        d = c + c
        assert ledger.held == 2000
        del b
        assert ledger.held == 2000  # c holds it
        del c, d
    assert (ledger.held, ledger.peak) == (0, 2000)


def test_activations_of_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    ledger = Ledger(model)
    with ledger:
        loss = model(torch.zeros(8, 10)).sum()
    # images, the ReLU's input (gone) and output, the answer (gone), the loss
    assert ledger.peak == 4 * (80 + 160 + 160)
    assert ledger.held == 4 * (80 + 160 + 1)
    del loss


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["kd", "mcld", "rkd", "crd"])
def test_a_rehearsal_counts_what_a_real_step_takes(name, precision):
    found = parts(name)
    within = 0.02 if name != "crd" else 0.2  # whose loss looks at content, and is left out
    assert rehearsed(*found, precision) == pytest.approx(really(*found[:3], precision), rel=within)


def test_it_counts_a_transformer_too():
    torch.manual_seed(0)
    student = TimmNetwork(name="test_vit", pretrained=False, drop_path=0.1, input_size=SIZE, num_classes=CLASSES)
    found = parts("kd", student)
    assert rehearsed(*found) == pytest.approx(really(*found[:3]), rel=0.15)  # attention has other kernels


@pytest.mark.parametrize("name", harness.METHODS)
def test_every_method_can_be_rehearsed_and_is_left_as_it_was(name):
    small, large, method, spec = parts(name)
    state = torch.random.get_rng_state()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (small, large, method)]
    assert rehearsed(small, large, method, spec) > ROWS * 3 * SIZE * SIZE * 4
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for m in (small, method) for p in m.parameters())
    for module, held in zip((small, large, method), before, strict=True):
        assert all(torch.equal(value, held[key]) for key, value in module.state_dict().items())


def test_more_rows_take_more():
    small, large, method, spec = parts("kd")
    sizes = [
        step_peak(small, large, method, spec, rows=rows, size=SIZE, precision="32-true", device=CPU) for rows in (8, 16)
    ]
    assert 1.8 < sizes[1] / sizes[0] < 2


def test_what_optimizers_keep():
    assert kept_per_number(lambda p: torch.optim.SGD(p, lr=0.1)) == 0
    assert kept_per_number(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)) == 4
    assert kept_per_number(lambda p: AdamW(p, lr=0.1, betas=(0.9, 0.99), weight_decay=0, decay_all=True)) == 8


def test_bytes_of_a_module():
    assert bytes_of(nn.BatchNorm2d(10)) == 4 * 40 + 8
    assert bytes_of(None) == 0


def test_there_is_memory():
    assert 0 < free_memory(CPU) <= total_memory()
    assert free_memory(torch.device("meta")) is None


# ---------------------------------------------------------------------- a run


def config():
    return harness.configure(*harness.SMALL, *harness.RANDOM_TEACHER, "distiller=kd", "recipe.epochs=1")


def test_a_run_says_what_it_takes_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "distill"):
        harness.execute(config(), tmp_path, kill_at=2)
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("memory:")]
    assert line.startswith("memory: about ")
    for name in ("student", "step", "teacher", "method", "data"):
        assert f"{name} " in line


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "free_memory", lambda _: 2_000_000)
    with pytest.raises(UserError, match=r"^This run needs about .* are free: .*recipe\.accumulate=2, or choose"):
        harness.execute(config(), tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_a_loss_that_looks_at_content_is_left_out(monkeypatch):
    def look(self, step):
        assert bool((step.student.logits > -1e9).all())
        return {"kd": step.student.logits.sum()}

    monkeypatch.setattr(KD, "forward", look)
    small, large, method, spec = parts("kd")
    assert rehearsed(small, large, method, spec) == pytest.approx(really(small, large, method), rel=0.02)


def test_tensors_without_content_can_be_put_elsewhere():
    with FakeTensorMode():
        module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
        module[2].weight = module[0].weight
        _put((module, None), torch.device("meta"))
        assert {x.device.type for x in tensors(module)} == {"meta"}
    assert module[2].weight is module[0].weight
    assert all(p.requires_grad for p in module.parameters())


def test_what_may_not_fit_is_said_and_tried(tmp_path, monkeypatch, caplog):
    found = memory.estimate(config(), prepare(config(), tmp_path / "other"))
    there = int(found.total / 1.1) - found.student - found.teacher  # what is there already counts as well
    monkeypatch.setattr(memory, "free_memory", lambda _: there)
    with caplog.at_level(logging.INFO, "distill"):
        harness.execute(config(), tmp_path / "run")
    (line,) = [r for r in caplog.records if "may not fit" in r.getMessage()]
    assert line.levelno == logging.WARNING


def test_what_cannot_be_estimated_is_no_reason_to_stop(tmp_path, monkeypatch, caplog):
    def look(self, x):
        assert bool((x > -1e9).all())
        return answer(self, x)

    answer = CifarResNet.answer
    monkeypatch.setattr(CifarResNet, "answer", look)
    with caplog.at_level(logging.INFO, "distill"):
        train.carry_out(config(), tmp_path)
    assert any(r.getMessage().startswith("memory: not estimated") for r in caplog.records)
    assert (tmp_path / "result.json").exists()
