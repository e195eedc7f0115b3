"""The schedule against PyTorch's own."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from distill.optim import MultiStep


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
