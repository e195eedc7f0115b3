"""Label assignment (LA): where the teacher is wrong, its largest logit goes to the label.

The exchange is the probability shift of Wen et al. (Neurocomputing 2021, arXiv 1911.07471); as a method by itself it is
a rival in the RLD paper (arXiv 2408.07703), whose public code (zju-SWJ/RLD) calls it SWAP.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision, kd_loss
from distill.types import Spec, Step


def assigned(t: Tensor, labels: Tensor) -> Tensor:
    """Teacher logits with the largest and the label's exchanged, row by row.

    Args:
        t: Teacher logits, shape (batch, classes).
        labels: Class of each row, shape (batch,), int64.

    Returns:
        Same shape; rows whose label holds the largest logit are as they were.
    """
    label, top = labels[:, None], t.argmax(dim=1, keepdim=True)
    return t.scatter(1, top, t.gather(1, label)).scatter(1, label, t.gather(1, top))


def la_loss(s: Tensor, t: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """`kd_loss` to the teacher's `assigned` logits.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        labels: Class of each row, shape (batch,), int64.
        temperature: Softening T > 0; the result is scaled by T².

    Returns:
        Mean over the batch: a scalar, never negative.
    """
    return kd_loss(s, assigned(t, labels), temperature=temperature)


class LabelAssignment(Distiller):
    """`la_loss`; with a `ce_weight` other than 0 also cross-entropy, which the published method does without."""

    def __init__(self, spec: Spec, *, temperature: float, ce_weight: float, kd_weight: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The term "kd", after "ce" where its weight is not 0."""
        student, teacher, labels = step.student.logits, step.teacher.logits, step.batch.labels
        terms = {}
        if self.ce_weight:
            terms["ce"] = self.ce_weight * F.cross_entropy(full_precision(student), labels)
        terms["kd"] = self.kd_weight * la_loss(student, teacher, labels, temperature=self.temperature)
        return terms
