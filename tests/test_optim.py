"""The schedules against PyTorch's own."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from distill.errors import UserError
from distill.optim import Cosine, MultiStep


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
