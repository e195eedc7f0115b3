"""Knowledge distillation (Hinton et al., 2015, arXiv 1503.02531): match the teacher's softened probabilities."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.distillers.contract import Distiller
from distill.types import Spec, Step


def full_precision(logits: Tensor) -> Tensor:
    """The logits in float32 (bf16 would lose a log-probability's digits), or in float64 where they come so."""
    return logits if logits.dtype == torch.float64 else logits.float()


def kd_loss(s: Tensor, t: Tensor, *, temperature: float | Tensor) -> Tensor:
    """Kullback-Leibler divergence from the softened student to the softened teacher (section 2 of the paper).

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        temperature: Softening T > 0; the result is scaled by T² so that gradients keep their size when T changes.
            One that is learned (0-d) gets its gradient from both sides and from T².

    Returns:
        Mean over the batch, in nats times T²: a scalar, never negative, zero where the logits agree up to a constant
        per row.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(full_precision(s) / temperature, dim=1),
        F.log_softmax(full_precision(t.detach()) / temperature, dim=1),
        reduction="batchmean",  # "mean" would also divide by the classes
        log_target=True,
    )


class KD(Distiller):
    """Cross-entropy on the labels plus `kd_loss` on the logits."""

    def __init__(self, spec: Spec, *, temperature: float, ce_weight: float, kd_weight: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "kd"."""
        student, teacher = step.student.logits, step.teacher.logits
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(student), step.batch.labels),
            "kd": self.kd_weight * kd_loss(student, teacher, temperature=self.temperature),
        }
