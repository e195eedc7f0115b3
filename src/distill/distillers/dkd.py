"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679).

KD's divergence splits into one over (target, rest) and one among the other classes; DKD weighs them separately.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.types import Spec, Step


def ramp(epoch: int, warmup_epochs: float) -> float:
    """The linear warm-up min(epoch / warmup_epochs, 1); epochs count from 1, and 0 means no warm-up."""
    return min(epoch / warmup_epochs, 1.0) if warmup_epochs else 1.0


def two_way(logits: Tensor, chosen: Tensor) -> Tensor:
    """Log-probabilities of one class and of all others together, through logsumexp: neither p nor 1 - p underflows.

    Args:
        logits: Shape (batch, classes).
        chosen: The class of each row, shape (batch,), int64.

    Returns:
        Shape (batch, 2).
    """
    chosen = chosen[:, None]
    rest = logits.scatter(1, chosen, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([logits.gather(1, chosen), rest], dim=1).log_softmax(dim=1)


def masked_kl(s: Tensor, t: Tensor, masked: Tensor, *, temperature: float) -> Tensor:
    """T² times the divergence from student to teacher among the classes that are not masked.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        masked: Classes that take no part, same shape, boolean; a row with all classes masked gives zero.
        temperature: Softening T > 0.

    Returns:
        Mean over the batch (rows that give zero included): a scalar.
    """
    # exact masking; a softmax over nothing would be NaN, so rows without a class keep theirs until the second fill
    softened = masked & ~masked.all(dim=1, keepdim=True)

    def log_probabilities(logits: Tensor) -> Tensor:
        among = (full_precision(logits) / temperature).masked_fill(softened, -torch.inf).log_softmax(dim=1)
        return among.masked_fill(masked, 0.0)  # equal on both sides: exp(0) * (0 - 0) adds nothing

    student, teacher = log_probabilities(s), log_probabilities(t.detach())
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def tckd_loss(s: Tensor, t: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Target-class part (section 3 of the paper): T² times the divergence of (target, rest).

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        labels: Target of each row, shape (batch,), int64.
        temperature: Softening T > 0.

    Returns:
        Mean over the batch: a scalar.
    """
    student = two_way(full_precision(s) / temperature, labels)
    teacher = two_way(full_precision(t.detach()) / temperature, labels)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def nckd_loss(s: Tensor, t: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Non-target part (section 3 of the paper): T² times the divergence among the other classes.

    Arguments and result as `tckd_loss`.
    """
    target = torch.zeros_like(s, dtype=torch.bool).scatter(1, labels[:, None], True)
    return masked_kl(s, t, target, temperature=temperature)


def dkd_loss(s: Tensor, t: Tensor, labels: Tensor, *, alpha: float, beta: float, temperature: float) -> Tensor:
    """Alpha `tckd_loss` + beta `nckd_loss`.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        labels: Target of each row, shape (batch,), int64.
        alpha: Weight of the target-class part.
        beta: Weight of the non-target part; where KD weighs it with 1 - p_target of the teacher, DKD does not.
        temperature: Softening T > 0.

    Returns:
        Mean over the batch: a scalar.
    """
    target_class = tckd_loss(s, t, labels, temperature=temperature)
    return alpha * target_class + beta * nckd_loss(s, t, labels, temperature=temperature)


class DKD(Distiller):
    """Cross-entropy on the labels plus the two parts of `dkd_loss`, which warm up linearly."""

    def __init__(
        self,
        spec: Spec,
        *,
        temperature: float,
        alpha: float,
        beta: float,
        ce_weight: float,
        warmup_epochs: float,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.ce_weight = ce_weight
        self.warmup_epochs = warmup_epochs

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce", "tckd" and "nckd"."""
        student, teacher, labels = step.student.logits, step.teacher.logits, step.batch.labels
        warm = ramp(step.epoch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(student), labels),
            "tckd": warm * self.alpha * tckd_loss(student, teacher, labels, temperature=self.temperature),
            "nckd": warm * self.beta * nckd_loss(student, teacher, labels, temperature=self.temperature),
        }
