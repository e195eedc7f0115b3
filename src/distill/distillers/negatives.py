"""Negatives drawn on the device: for each anchor other samples, none of its class, without a special data set."""

import math

import torch
from torch import Tensor, nn

from distill.errors import UserError

WORD = 2**32 - 1
# after three, how many negatives fall into a class still varies by 1 to 10 % too much; after five it does not
TURNS = 5
IN_CACHE = 2**17  # numbers that stay in a processor's cache while they are worked on


class Negatives(nn.Module):
    """Draws `count` samples of other classes for each anchor, uniformly and without replacement, as CRD does.

    What is drawn is a function of (seed, draw, sample of the anchor) alone, by integer arithmetic where the anchors
    are: no generator has a state to keep, ranks need not know of each other, and the host waits for nothing. The
    samples of other classes are a pool of m, numbered without gaps as samples are sorted by class. The pool is laid out
    as a square, whose columns and rows are turned in alternation, each by a random step of its own; in the end all
    numbers are moved on by one step. Each of these permutes the pool, hence so does their sequence, and the negatives
    are where it sends 0 to count - 1. The last one makes every sample exactly as likely as any other.

    Where the pool is smaller than `count`, its samples are taken in turn, equally often within one; the authors' code
    then draws with replacement.

    Attributes:
        seed: Drawn at construction, 0-d.
        draws: How many batches went by, 0-d.
        order: Samples sorted by class, shape (samples,).
        first: Where each class begins in `order`, shape (classes,).
        sizes: Samples of each class, shape (classes,).
    """

    seed: Tensor
    draws: Tensor
    order: Tensor
    first: Tensor
    sizes: Tensor

    def __init__(self, labels: Tensor, *, num_classes: int, count: int) -> None:
        """Sort the samples by class.

        Args:
            labels: Class of each sample, shape (samples,), int64.
            num_classes: Classes that labels may name.
            count: Negatives per anchor.

        Raises:
            UserError: If no negative is asked for, or none exists because all samples are of one class.
        """
        super().__init__()
        sizes = labels.bincount(minlength=num_classes)
        pools = len(labels) - sizes[sizes > 0]
        if count < 1:
            raise UserError(f"negatives={count} leaves nothing to contrast with: give at least 1.")
        if not pools.min():
            raise UserError(
                f"all {len(labels):,} training samples are of one class, so that none has a negative: CRD needs two."
            )
        self.count = count
        self.side = math.isqrt(int(pools.max()) - 1) + 1
        self.wraps = count > int(pools.min())
        self.register_buffer("seed", torch.randint(WORD, ()))
        self.register_buffer("draws", torch.tensor(0))
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("first", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)

    def forward(self, index: Tensor, labels: Tensor) -> Tensor:
        """Negatives of some anchors; the same until `advance`.

        Args:
            index: Sample of each anchor, shape (batch,), int64.
            labels: Its class, same shape.

        Returns:
            Samples, shape (batch, count), int64; distinct within a row whose pool has `count`.
        """
        rows = len(index) if index.device.type != "cpu" else max(1, IN_CACHE // self.count)
        parts = zip(torch.split(index, rows), torch.split(labels, rows), strict=True)
        return torch.cat([self._draw(*part) for part in parts])

    def advance(self) -> None:
        """Let other negatives be drawn."""
        self.draws.add_(1)

    def _draw(self, index: Tensor, labels: Tensor) -> Tensor:
        first, size = self.first[labels, None], self.sizes[labels, None]
        pool = len(self.order) - size
        full, rest = pool // self.side, pool % self.side  # whole rows of the square, and the length of the last one
        place = torch.arange(self.side, device=index.device)
        heights, lengths = full + (place < rest), (pool - place * self.side).clamp(0, self.side)
        words = self._words(index, TURNS * self.side + 1)
        *turns, by = torch.split(words, [self.side] * TURNS + [1], dim=1)

        number = torch.arange(self.count, device=index.device)[None]
        if self.wraps:
            number = number % pool
        row, column = (x.int().expand(len(index), -1) for x in (number // self.side, number % self.side))
        for which, turn in enumerate(turns):
            if which % 2:
                column = _turn(column, row.long(), turn, lengths)
            else:
                row = _turn(row, column.long(), turn, heights)
        number = _shift(row * self.side + column, _steps(by, pool), pool.int())
        # the pool leaves out the anchor's class, which lies in one piece
        after = (first - 1).int() - number >> 31
        number.add_(after.bitwise_and_(size.int()))
        return self.order.index_select(0, number.view(-1)).view_as(number)

    def _words(self, index: Tensor, count: int) -> Tensor:
        """Random numbers of 32 bits, shape (batch, count), in int64."""
        stream = _hash(_hash(_hash(self.seed) ^ (self.draws & WORD)) ^ index)
        # steps of the golden ratio keep the arguments of neighbours apart
        return _hash((stream[:, None] + torch.arange(1, count + 1, device=index.device) * 0x9E3779B9) & WORD)


def _hash(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers that looks random (constants: C. Wellons, hash-prospector, public domain).

    Both constants are below 2^31, so that no product leaves int64.
    """
    x = (x ^ (x >> 16)) * 0x21F0AAAD & WORD
    x = (x ^ (x >> 15)) * 0x735A2D97 & WORD
    return x ^ (x >> 15)


def _steps(words: Tensor, lengths: Tensor) -> Tensor:
    """Random numbers in [-length, 0), int32; of that sign because masks are slow on CPUs, see `_shift`."""
    return ((words * lengths >> 32) - lengths).int()


def _shift(x: Tensor, steps: Tensor, lengths: Tensor) -> Tensor:
    """(x + steps) modulo lengths, for places in [0, length) and steps in [-length, 0), all int32."""
    x = x + steps
    return x.add_((x >> 31).bitwise_and_(lengths))


def _turn(x: Tensor, line: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """Move places along their lines, each line by a random step of its own, and round at its end.

    Args:
        x: Places, int32, shape (batch, count).
        line: On which line each of them lies, int64, shape (batch, count).
        words: A random number of 32 bits for each line, int64, shape (batch, lines).
        lengths: Places on each line, int64, same shape.
    """
    return _shift(x, _steps(words, lengths).gather(1, line), lengths.int().gather(1, line))
