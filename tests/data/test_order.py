"""Order, shares and the holdout."""

import pytest
import torch

from distill.data.order import balanced_split, epoch_order, mixed, shares


def test_an_epoch_is_a_permutation_of_its_own():
    orders = [epoch_order(50, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[3], epoch_order(50, seed=1, epoch=1))


def test_seeds_do_not_meet_across_their_parts():
    seeds = {mixed(seed, epoch, purpose) for seed in range(12) for epoch in range(12) for purpose in ("crop", "flip")}
    assert len(seeds) == 288


@pytest.mark.parametrize("rows", [0, 1, 4, 7, 64])
@pytest.mark.parametrize("world", [1, 2, 4, 5])
def test_shares_are_those_of_tensor_split(rows, world):
    assert shares(rows, world=world) == tuple(len(part) for part in torch.arange(rows).tensor_split(world))


def test_holdout_is_balanced_disjoint_and_always_the_same():
    labels = torch.tensor([0] * 30 + [2] * 30 + [1] * 30)[torch.randperm(90)]
    kept, held = balanced_split(labels, 10)
    assert sorted(labels[held].bincount().tolist()) == [3, 3, 4]
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(90))
    assert torch.equal(held, balanced_split(labels, 10)[1])


def test_holdout_leaves_every_class_an_image():
    labels = torch.tensor([0] * 20 + [1] * 2 + [4] * 5)
    kept, held = balanced_split(labels, 12)
    assert labels[held].bincount().tolist() == [7, 1, 0, 0, 4]
    assert labels[balanced_split(labels, 24)[0]].tolist() == [0, 1, 4]
    assert torch.equal(kept.sort().values, kept)
