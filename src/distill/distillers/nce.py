"""Noise-contrastive estimation with negatives of each anchor's own, drawn from a bank that no gradient reaches."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-7  # as in CRD's code
FOLDS = 6  # a product of 2^6 numbers below 2 fits float32
# where a bank has fewer rows per negative than these, products with all of it are cheaper than gathering
ALL_ON_CPU, ALL_ELSEWHERE = 8, 32
# rows gathered at a time
ROWS_ON_CPU, ROWS_ELSEWHERE = 2**12, 2**18
BAG = 64  # rows added up in one go, so that GPUs have many sums to share out


def nce_loss(anchors: Tensor, bank: Tensor, own: Tensor, negatives: Tensor, *, log_z: Tensor) -> Tensor:
    """Tell the anchor's own row of a bank from noise that is uniform over the bank.

    With P = exp(anchor . row) / Z, K negatives, N rows and c = K / N, the loss as CRD's code has it is

        -log(P+ / (P+ + c + 1e-7)) - sum over the negatives of log(c / (P- + c + 1e-7)),

    which is softplus(-d+) + sum softplus(d-) + K log(1 + 1e-7 / c) of d = anchor . row - log Z - log(c + 1e-7): here no
    exponential can overflow and no logarithm vanish. Computes in the anchors' precision, also under autocast. Cannot be
    differentiated twice.

    Args:
        anchors: Normalised rows over the temperature, shape (batch, features).
        bank: Normalised rows, same dtype, shape (N, features); no gradient reaches them.
        own: Which row is the anchor's, shape (batch,), int64.
        negatives: Which ones are its negatives, shape (batch, K), int64.
        log_z: Logarithm of the normalisation constant Z, 0-d.

    Returns:
        Shape (batch,), not negative: sums over the K + 1 candidates.
    """
    count, noise = negatives.shape[1], negatives.shape[1] / len(bank)
    threshold = log_z + math.log(noise + EPSILON)
    with torch.autocast(anchors.device.type, enabled=False):
        positive = F.softplus(threshold - _own_products(anchors, bank, own))
        negative: Tensor = _Negatives.apply(anchors, bank, negatives, threshold)  # type: ignore[no-untyped-call]
    return positive + negative + count * math.log1p(EPSILON / noise)


@torch.no_grad()
def log_sums(anchors: Tensor, bank: Tensor, own: Tensor, negatives: Tensor) -> Tensor:
    """Logarithm of the sum of exp(anchor . row) over an anchor's K + 1 candidates; arguments as `nce_loss`.

    Returns:
        Shape (batch,), without a graph.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        positive = _own_products(anchors, bank, own)
        return torch.logaddexp(_products(anchors, bank, negatives).logsumexp(dim=1), positive)


def _own_products(anchors: Tensor, bank: Tensor, own: Tensor) -> Tensor:
    return (anchors * bank[own]).sum(dim=1)


class _Negatives(torch.autograd.Function):
    """Sum of softplus(anchor . row - threshold) over each anchor's rows, whose gradient is ready with it.

    The gradient is the sum of the rows weighed by sigmoid(anchor . row - threshold): nothing of size (batch, K,
    features) is ever there, and nothing of size (batch, K) is kept.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, bank: Tensor, negatives: Tensor, threshold: Tensor) -> Tensor:
        d = _products(anchors, bank, negatives).sub_(threshold)
        ctx.save_for_backward(_weighed(d.sigmoid(), bank, negatives))
        return _sum_of_softplus(d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (pull,) = ctx.saved_tensors
        return gradient[:, None] * pull, None, None, None


def _products(anchors: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
    """anchors[i] . bank[chosen[i, k]], shape (batch, K)."""
    count, cpu = chosen.shape[1], anchors.device.type == "cpu"
    if len(bank) <= (ALL_ON_CPU if cpu else ALL_ELSEWHERE) * count:
        return (anchors @ bank.T).gather(1, chosen)
    near = anchors.new_empty(chosen.shape)
    limit = ROWS_ON_CPU if cpu else ROWS_ELSEWHERE
    high = max(1, limit // count)
    for some, theirs, place in zip(*(torch.split(x, high) for x in (anchors, chosen, near)), strict=True):
        for part, out in zip(*(torch.split(x, limit, dim=1) for x in (theirs, place)), strict=True):
            # bags of one row: on CPUs three times as fast as indexing
            rows = F.embedding_bag(part.reshape(-1, 1), bank, mode="sum").view(*part.shape, -1)
            out.copy_(torch.bmm(some[:, None], rows.mT)[:, 0])
    return near


def _weighed(weights: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
    """Sum over k of weights[i, k] bank[chosen[i, k]], shape (batch, features)."""
    batch, count = chosen.shape
    if missing := -count % BAG:
        weights, chosen = F.pad(weights, (0, missing)), F.pad(chosen, (0, missing))  # row 0 with weight 0
    bags, weights = chosen.view(-1, BAG), weights.view(-1, BAG)
    sums = F.embedding_bag(bags, bank, per_sample_weights=weights, mode="sum")
    return sums.view(batch, -1, bank.shape[1]).sum(dim=1)


def _sum_of_softplus(d: Tensor) -> Tensor:
    """Sum of log(1 + exp(d)) over the second dimension; on CPUs ten times as fast as torch's softplus.

    log(1 + exp(d)) = max(d, 0) + log(1 + q) with q = exp(-|d|). Many logarithms are that of one product, kept less 1,
    for (1 + a) (1 + b) - 1 = a + b + a b rounds no small number away.
    """
    q = d.abs().neg_().exp_()
    for _ in range(FOLDS):
        rest = q.shape[1] // 2
        a, b = q[:, :rest], q[:, q.shape[1] - rest :]
        a.copy_(torch.addcmul(a + b, a, b))
        q = q[:, : q.shape[1] - rest]
    return d.clamp(min=0).sum(dim=1) + q.log1p().sum(dim=1)
