"""InfoNCE against many keys, block by block: nothing of size (batch, keys) outlives a block."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# numbers of a block's largest tensor: of a CPU's second cache, and on others enough to make launches cheap
NUMBERS_ON_CPU, NUMBERS_ELSEWHERE = 2**18, 2**24
SHORTEST = 512  # keys per block, below which products of matrices slow down

Masked = Callable[[slice], Tensor]
Lengths = Callable[[Tensor], Tensor]


def infonce(
    anchors: Tensor,
    positive: Tensor,
    keys: Tensor,
    *,
    masked: Masked | None = None,
    lengths: Lengths | None = None,
    block: int | None = None,
) -> Tensor:
    """Tell the positive from the keys: log(exp(p) + sum over k of exp(a . k)) - p for each row.

    The sum is taken over blocks of keys with a running maximum (Milakov and Gimelshein, 2018, arXiv 1805.02867). The
    gradient with respect to an anchor is the mean of the keys under the softmax, which is gathered on the same walk (as
    Dao et al., 2022, arXiv 2205.14135, do with attention's values): the similarities are needed once, and backward only
    scales. Computes in the anchors' precision, also under autocast. Cannot be differentiated twice.

    Args:
        anchors: What keys are multiplied with, divided by the temperature, float32 or float64, (batch, features).
        positive: Similarity of each anchor to its own key, over temperature, same dtype, shape (batch,).
        keys: Of any floating dtype, cast block by block, shape (K, features); no gradient reaches them. K may be 0.
        masked: Given a slice of the keys, which of them do not count: boolean, broadcast to (batch, length of slice).
        lengths: Given some keys in the anchors' dtype, what to divide their similarities by, (batch, keys), positive;
            no gradient flows through it.
        block: Keys per block; None: by the sizes and the device.

    Returns:
        Shape (batch,), never negative: zero where no key counts.
    """
    if block is None:
        numbers = NUMBERS_ON_CPU if anchors.device.type == "cpu" else NUMBERS_ELSEWHERE
        block = max(SHORTEST, numbers // max(1, *anchors.shape))  # of similarities and of keys that are cast
    with torch.autocast(anchors.device.type, enabled=False):
        losses: Tensor = _InfoNCE.apply(anchors, positive, keys.detach(), masked, lengths, block)  # type: ignore[no-untyped-call]
    return losses


class _InfoNCE(torch.autograd.Function):
    """`infonce`, whose gradients are ready when its forward is."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positive: Tensor,
        keys: Tensor,
        masked: Masked | None,
        lengths: Lengths | None,
        block: int,
    ) -> Tensor:
        # exponentials are kept relative to the largest similarity so far: raw logits have no bound known beforehand
        largest, total, pull = positive, torch.ones_like(positive), torch.zeros_like(anchors)
        for start in range(0, len(keys), block):
            part = slice(start, min(start + block, len(keys)))
            rows = keys[part].to(anchors.dtype)
            near = anchors @ rows.T
            divisor = None if lengths is None else lengths(rows)
            if divisor is not None:
                near.div_(divisor)
            if masked is not None:
                near.masked_fill_(masked(part), -torch.inf)
            before, largest = largest, torch.maximum(largest, near.amax(dim=1))
            shrink = (before - largest).exp_()
            near.sub_(largest[:, None]).exp_()
            total = torch.addcmul(near.sum(dim=1), total, shrink)
            if divisor is not None:
                near.div_(divisor)
            pull = torch.addmm(pull.mul_(shrink[:, None]), near, rows)
        ctx.save_for_backward(pull.div_(total[:, None]), (positive - largest).exp_().div_(total) - 1)
        # not logsumexp - positive: the small difference of two large numbers
        return (largest - positive).add_(total.log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pull, push = ctx.saved_tensors
        return gradient[:, None] * pull, gradient * push, None, None, None, None
