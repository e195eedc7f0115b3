"""Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682).

Samples that are alike to the teacher shall be alike to the student, wherever in its own space it puts them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import memory
from distill.distillers.connectors import require, unit
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.types import Spec, Step


def similarities(x: Tensor) -> Tensor:
    """Inner products of all pairs of rows, each row of them at length one (section 3 of the paper).

    Args:
        x: Shape (rows, ...).

    Returns:
        Shape (rows, rows), in float32 at least; a row is zero where that of `x` is.
    """
    flat = full_precision(x).flatten(1)
    with torch.autocast(x.device.type, enabled=False):
        return unit(flat @ flat.T, dim=1)


def sp_loss(s: Tensor, t: Tensor) -> Tensor:
    """Squared difference of the similarities of all pairs of samples (section 3 of the paper).

    Args:
        s: Student map, shape (rows, ...).
        t: Teacher map, as many rows, else of any shape; no gradient reaches it.

    Returns:
        Mean over all pairs: a scalar; zero for a single row.
    """
    return F.mse_loss(similarities(s), similarities(t.detach()))


class SP(Distiller):
    """Cross-entropy on the labels plus `sp_loss` of the last stages' maps.

    Similarities are those of a batch: several ranks compare all ranks' rows, so that a step equals that of one process
    on the joined batch. Micro-batches of an accumulated step are taken one by one.

    Args:
        spec: Says whether both networks show stages.
        ce_weight: Of the cross-entropy.
        sp_weight: Of the similarities.

    Raises:
        UserError: If a network shows no stages.
    """

    needs = "features"
    reads = ("stages",)

    def __init__(self, spec: Spec, *, ce_weight: float, sp_weight: float) -> None:
        super().__init__()
        require(spec, SP)
        self.ce_weight = ce_weight
        self.sp_weight = sp_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "sp"."""
        student, teacher = step.student.stages[-1].flatten(1), step.teacher.stages[-1].flatten(1)
        s, t = memory.everywhere(student, teacher, step.batch.rows)
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "sp": self.sp_weight * memory.of_joined(sp_loss(s, t), step.batch),
        }
