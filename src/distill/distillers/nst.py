"""Neuron selectivity transfer (Huang and Wang, 2017, arXiv 1707.01219): match where channels are active.

A channel is a sample of a distribution over positions; the loss is the maximum mean discrepancy of both networks'
samples under the kernel (x . y)², the paper's polynomial kernel with d = 2 and c = 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.distillers.connectors import at_one_size, paired, require, stage_pairs, unit
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.types import Spec, Step


def nst_loss(s: Tensor, t: Tensor) -> Tensor:
    """Squared discrepancy of the channels of one stage of each network (section 4 of the paper).

    With channels as vectors x of length one over positions, the mean of (x . y)² over pairs of them is the inner
    product of their second moments, the means of x xᵀ. So the discrepancy is the squared distance of two matrices of
    positions x positions; where channels are fewer, the kernels themselves are cheaper.

    Args:
        s: Student map, shape (batch, channels, height, width).
        t: Teacher map; channels, height and width may differ, and no gradient reaches it. The larger map is averaged
            to the size of the smaller.

    Returns:
        Mean over the batch: a scalar, in float32 at least.
    """
    s, t = at_one_size(full_precision(s), full_precision(t.detach()))
    s, t = (unit(x.flatten(2), dim=2) for x in (s, t))
    with torch.autocast(s.device.type, enabled=False):
        if max(s.shape[1], t.shape[1]) < s.shape[2]:
            same, across = _kernel(s, s) + _kernel(t, t), _kernel(s, t)
            return (same - 2 * across).mean()
        return (_moments(s) - _moments(t)).square().sum(dim=(1, 2)).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean over all pairs of channels, shape (batch,)."""
    return (a @ b.mT).square().mean(dim=(1, 2))


def _moments(x: Tensor) -> Tensor:
    """Second moments over channels, shape (batch, positions, positions)."""
    return x.mT @ x / x.shape[1]


class NST(Distiller):
    """Cross-entropy on the labels plus `nst_loss`, summed over the stages that meet; see `stage_pairs`.

    The paper matches the last convolution alone; every stage is what HobbitLong/RepDistiller matches, whose numbers the
    later literature compares with.

    Args:
        spec: Says which stages meet.
        ce_weight: Of the cross-entropy.
        nst_weight: Of the sum over stages.

    Raises:
        UserError: If a network shows no stages.
    """

    needs = "features"
    reads = ("stages",)

    def __init__(self, spec: Spec, *, ce_weight: float, nst_weight: float) -> None:
        super().__init__()
        self.pairs = stage_pairs(*require(spec, NST))
        self.ce_weight = ce_weight
        self.nst_weight = nst_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "nst"."""
        losses = torch.stack([nst_loss(s, t) for s, t in paired(step.student, step.teacher, self.pairs)])
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "nst": self.nst_weight * losses.sum(),
        }
