"""What crosses ranks, in rank order."""

import torch
import torch.distributed as dist
from torch import Tensor


def gather(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """All ranks' rows, in rank order, without a graph.

    Args:
        rows: This rank's rows, shape (counts[rank], ...).
        counts: Rows of every rank (`Batch.rows`); empty or of length one in a single process.

    Returns:
        Shape (sum(counts), ...): what one process would hold of the joined batch.
    """
    rows = rows.detach()
    if len(counts) < 2:
        return rows
    # all_gather wants equal shapes: pad to the longest share, then cut
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def first_row(counts: tuple[int, ...]) -> int:
    """Where this rank's rows begin in the joined batch."""
    return sum(counts[: dist.get_rank()]) if len(counts) > 1 else 0
