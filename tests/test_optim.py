"""The schedules against PyTorch's own."""

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from distill.errors import UserError
from distill.optim import AdamW, Cosine, MultiStep, TimmCosine


def test_equals_multi_step_lr_stepped_per_epoch() -> None:
    steps = 7
    parameter = torch.nn.Parameter(torch.zeros(1))
    ours, theirs = (torch.optim.SGD([parameter], lr=0.05) for _ in range(2))
    schedule = MultiStep(milestones=[3, 5, 6], gamma=0.1, warmup_epochs=0)
    a = LambdaLR(ours, lambda step: schedule(step / steps))
    b = MultiStepLR(theirs, [3, 5, 6], gamma=0.1)
    for _ in range(8):
        for _ in range(steps):
            assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
            ours.step()
            a.step()
        theirs.step()
        b.step()


def test_milestones_may_fall_inside_an_epoch() -> None:
    schedule = MultiStep(milestones=[0.5], gamma=0.1, warmup_epochs=0)
    assert schedule(0.49) == 1
    assert schedule(0.5) == pytest.approx(0.1)


def test_warm_up_rises_to_one_and_stays() -> None:
    schedule = MultiStep(milestones=[], gamma=0.1, warmup_epochs=2)
    values = [schedule(epoch / 10) for epoch in range(30)]
    assert 0 < values[0] < values[1] < values[19] < values[20] == values[29] == 1


def test_cosine_by_hand() -> None:
    schedule = Cosine(epochs=10, warmup_epochs=2, floor=0.1)
    by_hand = {
        0: 0.0005,  # a thousandth of an epoch into the warm-up of two
        1: 0.5005,
        2: 1,
        4: 0.8681980515,  # .1 + .45 (1 + sqrt(1/2)): a quarter of the way
        6: 0.55,
        8: 0.2318019485,
        10: 0.1,
        11.5: 0.1,
    }
    for epoch, factor in by_hand.items():
        assert schedule(epoch) == pytest.approx(factor, rel=1e-9)


def test_cosine_equals_pytorchs_stepped_per_epoch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    theirs = CosineAnnealingLR(optimizer, T_max=7)
    ours = Cosine(epochs=7, warmup_epochs=0, floor=0)
    for epoch in range(8):
        assert 0.1 * ours(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"epochs": 5, "warmup_epochs": 5, "floor": 0}, "warmup_epochs=5 must be .* less than its epochs=5"),
        ({"epochs": 5, "warmup_epochs": -1, "floor": 0}, "warmup_epochs=-1 must be at least 0"),
        ({"epochs": 5, "warmup_epochs": 0, "floor": 1.5}, "floor=1.5 must lie between 0 and 1"),
    ],
)
def test_cosine_refuses_what_is_no_schedule(numbers: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Cosine(**numbers)


def test_timm_cosine_equals_timms_stepped_per_epoch() -> None:
    """With the numbers of small transformers on CIFAR-100."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    theirs = CosineLRScheduler(optimizer, t_initial=300, lr_min=5e-6, warmup_t=20, warmup_lr_init=5e-7)
    ours = TimmCosine(epochs=300, warmup_epochs=20, warmup_from=0.001, floor=0.01)
    for epoch in range(301):
        theirs.step(epoch)
        assert 5e-4 * ours(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_timm_cosine_moves_within_epochs() -> None:
    ours = TimmCosine(epochs=10, warmup_epochs=2, warmup_from=0.1, floor=0)
    assert ours(0.5) == pytest.approx(0.325)
    assert ours(1.999) > ours(2) > ours(2.5) > ours(3)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"warmup_epochs": 5}, "warmup_epochs=5 must be .* less than its epochs=5"),
        ({"warmup_from": 2}, "warmup_from=2 must lie between 0 and 1"),
        ({"floor": -1}, "floor=-1 must lie between 0 and 1"),
    ],
)
def test_timm_cosine_refuses_what_is_no_schedule(numbers: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TimmCosine(**{"epochs": 5, "warmup_epochs": 1, "warmup_from": 0.1, "floor": 0, **numbers})


@pytest.mark.parametrize("decay_all", [False, True])
def test_adamw_spares_biases_norms_and_what_is_marked(decay_all: bool) -> None:
    """Without gradients, decay is all that moves a parameter."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(2, 2, 3))
    token = nn.Parameter(torch.ones(1, 1, 4))
    token.no_decay = True
    named = [*module.named_parameters(), ("token", token)]
    for _, parameter in named:
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = AdamW([p for _, p in named], lr=0.1, betas=(0.9, 0.999), weight_decay=0.5, decay_all=decay_all)
    optimizer.step()
    moved = {name for name, p in named if torch.allclose(p, torch.tensor(0.95))}
    still = {name for name, p in named if torch.equal(p, torch.ones_like(p))}
    assert moved | still == {name for name, _ in named}
    assert moved == ({name for name, _ in named} if decay_all else {"0.weight", "2.weight"})


def test_adamw_is_torchs_without_decay() -> None:
    start = torch.randn(5, 4)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    a = AdamW([ours], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, decay_all=False)
    b = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(3):
        gradient = torch.randn(5, 4)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    assert torch.equal(ours, theirs)
