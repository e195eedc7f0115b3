"""No distillation: the student learns from the labels alone."""

import torch.nn.functional as F
from torch import Tensor

from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.types import Spec, Step


class NoDistillation(Distiller):
    """Cross-entropy on the labels: how teachers and the tables' student baselines are trained."""

    needs_teacher = False

    def __init__(self, spec: Spec, *, ce_weight: float) -> None:
        super().__init__()
        self.ce_weight = ce_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The term "ce"."""
        return {"ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels)}
