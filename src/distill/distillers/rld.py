"""Refined logit distillation (RLD; its authors' public code is zju-SWJ/RLD).

What the teacher gets wrong is taken out with the help of the label, and its correlations between classes stay.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.distillers.contract import Distiller
from distill.distillers.dkd import masked_kl, ramp, two_way
from distill.distillers.kd import full_precision
from distill.types import Spec, Step


def scd_loss(s: Tensor, t: Tensor, labels: Tensor, *, confidence_temperature: float) -> Tensor:
    """Sample confidence: the student's probability of the label follows the teacher's largest probability.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        labels: Class of each row, shape (batch,), int64.
        confidence_temperature: Softening T > 0 of this part; the result is scaled by T².

    Returns:
        Divergence of (label, rest) from (teacher's largest, rest), mean over the batch: a scalar.
    """
    t = full_precision(t.detach())
    student = two_way(full_precision(s) / confidence_temperature, labels)
    teacher = two_way(t / confidence_temperature, t.argmax(dim=1))
    return confidence_temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def mcd_loss(s: Tensor, t: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Masked correlation: match the teacher among the classes that it ranks below the label.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        labels: Class of each row, shape (batch,), int64.
        temperature: Softening T > 0; the result is scaled by T².

    Returns:
        Mean over the batch: a scalar; a row whose label is the teacher's lowest class gives zero.
    """
    return masked_kl(s, t, t.detach() >= t.detach().gather(1, labels[:, None]), temperature=temperature)


def rld_loss(
    s: Tensor,
    t: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
    confidence_temperature: float,
) -> Tensor:
    """Alpha `scd_loss` + beta `mcd_loss`.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        labels: Class of each row, shape (batch,), int64.
        alpha: Weight of the sample confidence.
        beta: Weight of the masked correlation.
        temperature: Softening of the masked correlation.
        confidence_temperature: Softening of the sample confidence.

    Returns:
        Mean over the batch: a scalar.
    """
    confidence = scd_loss(s, t, labels, confidence_temperature=confidence_temperature)
    return alpha * confidence + beta * mcd_loss(s, t, labels, temperature=temperature)


class RLD(Distiller):
    """Cross-entropy on the labels plus the two parts of `rld_loss`, which warm up linearly."""

    def __init__(
        self,
        spec: Spec,
        *,
        temperature: float,
        confidence_temperature: float,
        alpha: float,
        beta: float,
        ce_weight: float,
        warmup_epochs: float,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.confidence_temperature = confidence_temperature
        self.alpha = alpha
        self.beta = beta
        self.ce_weight = ce_weight
        self.warmup_epochs = warmup_epochs

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce", "scd" and "mcd"."""
        student, teacher, labels = step.student.logits, step.teacher.logits, step.batch.labels
        warm = ramp(step.epoch, self.warmup_epochs)
        confidence = scd_loss(student, teacher, labels, confidence_temperature=self.confidence_temperature)
        correlation = mcd_loss(student, teacher, labels, temperature=self.temperature)
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(student), labels),
            "scd": warm * self.alpha * confidence,
            "mcd": warm * self.beta * correlation,
        }
