"""Relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068).

Not what the teacher answers to a sample, but how samples lie to each other: distances of pairs, angles of triplets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import memory
from distill.distillers.connectors import require, unit
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.types import Spec, Step

SHORTEST = 1e-6  # samples that are no further apart have neither a direction nor a gradient


def differences(x: Tensor) -> Tensor:
    """From each row to each: (rows, features) to (rows, rows, features)."""
    return x - x[:, None]


def distances(x: Tensor) -> Tensor:
    """Euclidean distances of all pairs of rows, over their mean (section 3.2.1 of the paper).

    Args:
        x: Shape (rows, features).

    Returns:
        Shape (rows, rows); the diagonal is zero, and all of it for a single row.
    """
    rows = len(x)
    itself = torch.eye(rows, dtype=torch.bool, device=x.device)
    # clamped before the root, whose gradient at zero is infinite
    lengths = differences(x).square().sum(dim=2).clamp(min=SHORTEST**2).sqrt().masked_fill(itself, 0.0)
    mean = lengths.sum() / max(1, rows * (rows - 1))
    return lengths / mean.clamp(min=SHORTEST)


def cosines(x: Tensor) -> Tensor:
    """Cosines of the angles of all triplets of rows (section 3.2.2 of the paper).

    Args:
        x: Shape (rows, features).

    Returns:
        Shape (rows, rows, rows), the vertex first; zero where another row of the triplet coincides with the vertex.
    """
    directions = unit(differences(x), dim=2, shortest=SHORTEST)
    with torch.autocast(x.device.type, enabled=False):
        return directions @ directions.mT


def distance_loss(s: Tensor, t: Tensor) -> Tensor:
    """Huber distance of the student's `distances` from the teacher's (section 3.2.1 of the paper).

    Args:
        s: Pooled features of the student, shape (rows, features).
        t: Those of the teacher, as many rows; no gradient reaches them.

    Returns:
        Mean over all pairs, those of a row with itself included: a scalar, in float32 at least.
    """
    return F.smooth_l1_loss(distances(full_precision(s)), distances(full_precision(t.detach())))


def angle_loss(s: Tensor, t: Tensor) -> Tensor:
    """Huber distance of the student's `cosines` from the teacher's (section 3.2.2 of the paper).

    Arguments as `distance_loss`.

    Returns:
        Mean over all triplets, degenerate ones included: a scalar, in float32 at least.
    """
    return F.smooth_l1_loss(cosines(full_precision(s)), cosines(full_precision(t.detach())))


def rkd_loss(s: Tensor, t: Tensor, *, distance_weight: float, angle_weight: float) -> Tensor:
    """`distance_loss` and `angle_loss`, weighted.

    Args:
        s: Pooled features of the student, shape (rows, features).
        t: Those of the teacher, as many rows; no gradient reaches them.
        distance_weight: Of the distances.
        angle_weight: Of the angles.

    Returns:
        A scalar; zero, without a gradient, for a single row.
    """
    return distance_weight * distance_loss(s, t) + angle_weight * angle_loss(s, t)


class RKD(Distiller):
    """Cross-entropy on the labels plus the two relations of `rkd_loss`, on pooled features.

    Both are relations of a batch: several ranks relate all ranks' rows, so that a step equals that of one process on
    the joined batch. Micro-batches of an accumulated step are taken one by one. Memory grows with rows² x features and
    with rows³.

    Args:
        spec: Says whether both networks show pooled features.
        ce_weight: Of the cross-entropy.
        distance_weight: Of the distances.
        angle_weight: Of the angles.

    Raises:
        UserError: If a network shows no pooled features.
    """

    needs = "features"
    reads = ("pooled",)

    def __init__(self, spec: Spec, *, ce_weight: float, distance_weight: float, angle_weight: float) -> None:
        super().__init__()
        require(spec, RKD)
        self.ce_weight = ce_weight
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce", "distance" and "angle"."""
        student, teacher = step.student.pooled, step.teacher.pooled
        assert student is not None
        assert teacher is not None
        s, t = memory.everywhere(student, teacher, step.batch.rows)
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "distance": self.distance_weight * memory.of_joined(distance_loss(s, t), step.batch),
            "angle": self.angle_weight * memory.of_joined(angle_loss(s, t), step.batch),
        }
