"""Who sees which sample when: pure functions of the seed, the epoch and the sample, never of rank or batch size."""

import hashlib

import torch
from torch import Tensor


def mixed(*parts: int | str) -> int:
    """A seed of 63 bits in which every part counts: neighbours in seed or epoch share nothing."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, whose numbers are the same on every machine, seeded by `mixed`."""
    return torch.Generator().manual_seed(mixed(*parts))


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> Tensor:
    """Order of the training samples in an epoch: a permutation, shape (num_samples,), int64."""
    return torch.randperm(num_samples, generator=generator(seed, epoch, "order"))


def shares(rows: int, *, world: int) -> tuple[int, ...]:
    """Rows of each rank, in rank order, cut as `torch.tensor_split` does: the first ranks hold one more."""
    return tuple(rows // world + (rank < rows % world) for rank in range(world))


def balanced_split(labels: Tensor, held: int) -> tuple[Tensor, Tensor]:
    """Take a class-balanced part of the training set, the same on every call and for every seed.

    Classes give equally many images as far as they reach, and no class gives its last one.

    Args:
        labels: Class of each image, shape (samples,).
        held: Images to take: 0 to samples - classes.

    Returns:
        Positions kept and positions taken, both ascending, int64.
    """
    shuffled = torch.randperm(len(labels), generator=generator("holdout"))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    # turn of each image within its class: all first images are taken before any second one
    turn = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    turn[counts[counts > 0].cumsum(0) - 1] = len(labels)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_class[turn.argsort(stable=True)[:held]]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
