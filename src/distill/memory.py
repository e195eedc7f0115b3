"""What crosses ranks, in rank order."""

import torch
import torch.distributed as dist
from torch import Tensor

from distill.types import Batch


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


def among_all(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """All ranks' rows in rank order: this rank's with their graph, the others' without.

    Args:
        rows: This rank's rows, shape (counts[rank], ...).
        counts: Rows of every rank (`Batch.rows`); empty or of length one in a single process.

    Returns:
        Shape (sum(counts), ...). A loss of it has the value of the joined batch, and towards this rank's rows its
        gradient.
    """
    if len(counts) < 2:
        return rows
    first, joined = first_row(counts), gather(rows, counts)
    return torch.cat([joined[:first], rows, joined[first + len(rows) :]])


def everywhere(student: Tensor, teacher: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Both networks' rows of all ranks in rank order, for losses that compare rows with each other.

    Args:
        student: This rank's rows, shape (counts[rank], ...); see `among_all`.
        teacher: Likewise; see `gather`.
        counts: As there.
    """
    return among_all(student, counts), gather(teacher, counts)


def of_joined(loss: Tensor, batch: Batch) -> Tensor:
    """A loss of all ranks' rows that is no mean over them, as a term that the training loop weighs as if it were.

    The loop counts n_r / N of the term of rank r, which holds n_r of the N rows. A mean over rows falls into such
    shares. A loss of `among_all` rows does not: every rank holds its whole value, and of its gradient what goes through
    the rank's own rows. So the value stays, as its shares sum to it, and the gradient is multiplied by N / n_r, so that
    the ranks' parts sum to the joined batch's.

    Args:
        loss: A scalar with a graph.
        batch: This rank's, for its rows and those of all.
    """
    if len(batch.rows) < 2:
        return loss
    value = loss.detach()
    return value + sum(batch.rows) / len(batch) * (loss - value)
