"""Refined confidence (RC): beside the teacher, the student learns from its own logits with the label's raised.

A rival in the RLD paper (arXiv 2408.07703), built after its public code (zju-SWJ/RLD).
"""

import torch.nn.functional as F
from torch import Tensor

from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision, kd_loss
from distill.types import Spec, Step


def raised(s: Tensor, labels: Tensor) -> Tensor:
    """Logits in which the largest is added to the label's, row by row.

    The sum depends on where a row's zero lies: where all logits are negative it lowers the label's.

    Args:
        s: Student logits, shape (batch, classes).
        labels: Class of each row, shape (batch,), int64.

    Returns:
        Same shape, without a graph.
    """
    s = s.detach()
    return s.scatter_add(1, labels[:, None], s.amax(dim=1, keepdim=True))


def rc_loss(s: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """`kd_loss` from the student to its own `raised` logits.

    Args:
        s: Student logits, shape (batch, classes); none of the gradient comes from their part in the target.
        labels: Class of each row, shape (batch,), int64.
        temperature: Softening T > 0; the result is scaled by T².

    Returns:
        Mean over the batch: a scalar, never negative; zero for rows whose largest logit is zero.
    """
    s = full_precision(s)
    return kd_loss(s, raised(s, labels), temperature=temperature)


class RefinedConfidence(Distiller):
    """Cross-entropy on the labels, `kd_loss` to the teacher and `rc_loss`, at one temperature."""

    def __init__(self, spec: Spec, *, temperature: float, ce_weight: float, kd_weight: float, rc_weight: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.rc_weight = rc_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce", "kd" and "rc"."""
        student, teacher, labels = step.student.logits, step.teacher.logits, step.batch.labels
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(student), labels),
            "kd": self.kd_weight * kd_loss(student, teacher, temperature=self.temperature),
            "rc": self.rc_weight * rc_loss(student, labels, temperature=self.temperature),
        }
