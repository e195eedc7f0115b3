"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, arXiv 1803.10837).

A sample's neighbours in the teacher's space shall be its neighbours in the student's, as probabilities.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import memory
from distill.distillers.connectors import require, unit
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.types import Spec, Step

EPSILON = 1e-7  # added to both probabilities in the logarithm, as in the authors' public code


def neighbours(x: Tensor) -> Tensor:
    """Probability of each row to be named as a neighbour of each: the cosine from 0 to 1, over its sum.

    The paper's cosine kernel; as in the authors' public code a row counts among its own neighbours.

    Args:
        x: Shape (rows, features).

    Returns:
        Shape (rows, rows), in float32 at least; rows sum to one.
    """
    directions = unit(full_precision(x), dim=1)
    with torch.autocast(x.device.type, enabled=False):
        closeness = ((directions @ directions.T + 1) / 2).clamp(min=0)  # opposites may be rounded to less
    return closeness / closeness.sum(dim=1, keepdim=True)


def pkt_loss(s: Tensor, t: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the student's `neighbours` to the teacher's (section 3 of the paper).

    Args:
        s: Pooled features of the student, shape (rows, features).
        t: Those of the teacher, as many rows; no gradient reaches them.

    Returns:
        Mean over all pairs, as in the authors' public code, hence weights of 30000: a scalar; zero for a single row.
    """
    student, teacher = neighbours(s), neighbours(t.detach())
    return (teacher * ((teacher + EPSILON) / (student + EPSILON)).log()).mean()


class PKT(Distiller):
    """Cross-entropy on the labels plus `pkt_loss`, on pooled features.

    Neighbours are those in a batch: several ranks compare all ranks' rows, so that a step equals that of one process on
    the joined batch. Micro-batches of an accumulated step are taken one by one.

    Args:
        spec: Says whether both networks show pooled features.
        ce_weight: Of the cross-entropy.
        pkt_weight: Of the divergence.

    Raises:
        UserError: If a network shows no pooled features.
    """

    needs = "features"
    reads = ("pooled",)

    def __init__(self, spec: Spec, *, ce_weight: float, pkt_weight: float) -> None:
        super().__init__()
        require(spec, PKT)
        self.ce_weight = ce_weight
        self.pkt_weight = pkt_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "pkt"."""
        student, teacher = step.student.pooled, step.teacher.pooled
        assert student is not None
        assert teacher is not None
        s, t = memory.everywhere(student, teacher, step.batch.rows)
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "pkt": self.pkt_weight * memory.of_joined(pkt_loss(s, t), step.batch),
        }
