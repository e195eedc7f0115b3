"""Label revision (LR; Lan et al., arXiv 2404.03693): the teacher's wrong answers are mixed with the label.

Built as the rival that the RLD paper (arXiv 2408.07703) compares with in its public code (zju-SWJ/RLD, REVISION): rows
of which the teacher is right and rows of which it is wrong are taught by different losses, and Lan et al.'s selection
of training data is left out.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import memory
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.types import Spec, Step


class Losses(NamedTuple):
    """Means over the rows of which the teacher is right (the first two) or wrong; zero where there is none.

    Attributes:
        right_ce: Cross-entropy on the labels.
        right_logits: Squared distance of the logits, mean over classes.
        wrong: Squared distance of the student's probabilities to the `revised` ones, mean over classes.
    """

    right_ce: Tensor
    right_logits: Tensor
    wrong: Tensor


def teacher_right(t: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit is the label's, boolean, shape (batch,)."""
    return t.argmax(dim=1) == labels


def revised(t: Tensor, labels: Tensor, *, eta: float) -> Tensor:
    """The teacher's probabilities p, moved so far to the label that it leads: g p + (1 - g) onehot(label).

    The share kept is g = eta / (max p - p_label + 1); any eta below 1 gives the label the largest probability.

    Args:
        t: Teacher logits, shape (batch, classes).
        labels: Class of each row, shape (batch,), int64.
        eta: In [0, 1); 0 leaves the one-hot label.

    Returns:
        Probabilities, same shape.
    """
    p, label = full_precision(t).softmax(dim=1), labels[:, None]
    kept = eta / (p.amax(dim=1, keepdim=True) - p.gather(1, label) + 1)
    return (kept * p).scatter_add(1, label, 1 - kept)


def lr_losses(s: Tensor, t: Tensor, labels: Tensor, *, eta: float, right: Tensor | None = None) -> Losses:
    """What each of the two groups of rows learns from.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        labels: Class of each row, shape (batch,), int64.
        eta: See `revised`.
        right: `teacher_right` of every row of the joined batch, shape (joined,), where `s` is one rank's share of it.

    Returns:
        Three scalars with a graph. Of a share, its part of each joined mean times joined / batch rows: what a loop that
        weighs ranks by their rows expects.
    """
    s, t = full_precision(s), full_precision(t.detach())
    own = teacher_right(t, labels)
    joined = own if right is None else right
    scale = len(joined) / len(own)

    def mean(per_row: Tensor, kept: Tensor, of: Tensor) -> Tensor:
        return scale * torch.where(kept, per_row, 0.0).sum() / of.sum().clamp(min=1)

    return Losses(
        mean(F.cross_entropy(s, labels, reduction="none"), own, joined),
        mean((s - t).square().mean(dim=1), own, joined),
        mean((s.softmax(dim=1) - revised(t, labels, eta=eta)).square().mean(dim=1), ~own, ~joined),
    )


class LabelRevision(Distiller):
    """The weighted sum of `lr_losses`; without a task term, as cross-entropy sees only what the teacher knows."""

    def __init__(
        self, spec: Spec, *, eta: float, right_ce_weight: float, right_logits_weight: float, wrong_weight: float
    ) -> None:
        super().__init__()
        self.eta = eta
        self.right_ce_weight = right_ce_weight
        self.right_logits_weight = right_logits_weight
        self.wrong_weight = wrong_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "right_ce", "right_logits" and "wrong"."""
        student, teacher, labels = step.student.logits, step.teacher.logits, step.batch.labels
        right = memory.gather(teacher_right(teacher, labels).long(), step.batch.rows).bool()
        losses = lr_losses(student, teacher, labels, eta=self.eta, right=right)
        return {
            "right_ce": self.right_ce_weight * losses.right_ce,
            "right_logits": self.right_logits_weight * losses.right_logits,
            "wrong": self.wrong_weight * losses.wrong,
        }
