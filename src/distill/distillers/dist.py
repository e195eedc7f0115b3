"""DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536): match correlations instead of probabilities.

A stronger teacher's probabilities are further from what a student can reach; what the student keeps is how they vary,
among the classes of a sample and among the samples of a class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import memory
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.types import Spec, Step

EPSILON = 1e-8  # on the product of the two norms, as in the authors' code (hunto/image_classification_sota)


def pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 minus Pearson's correlation of each pair of rows.

    Args:
        a: Shape (rows, values).
        b: Same shape.

    Returns:
        Shape (rows,); in [0, 2], and 1 where a row is constant.
    """
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return 1 - (a * b).sum(dim=1) / (norms + EPSILON)


def inter_loss(s: Tensor, t: Tensor, *, temperature: float) -> Tensor:
    """Inter-class relation (section 3 of the paper): Pearson distance over the classes of each sample.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        temperature: Softening T > 0; the result is scaled by T².

    Returns:
        Mean over the batch: a scalar.
    """
    return temperature**2 * pearson_distance(*_probabilities(s, t, temperature)).mean()


def intra_loss(s: Tensor, t: Tensor, *, temperature: float) -> Tensor:
    """Intra-class relation (section 3 of the paper): Pearson distance over the samples of each class.

    Arguments as `inter_loss`.

    Returns:
        Mean over the classes: a scalar, constant where the batch is one sample.
    """
    student, teacher = _probabilities(s, t, temperature)
    return temperature**2 * pearson_distance(student.T, teacher.T).mean()


def dist_loss(s: Tensor, t: Tensor, *, beta: float, gamma: float, temperature: float) -> Tensor:
    """Beta `inter_loss` + gamma `intra_loss`: the paper's loss without its task term.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        beta: Weight of the inter-class relation.
        gamma: Weight of the intra-class relation.
        temperature: Softening T > 0; the result is scaled by T².

    Returns:
        A scalar.
    """
    return beta * inter_loss(s, t, temperature=temperature) + gamma * intra_loss(s, t, temperature=temperature)


def _probabilities(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student, teacher = ((full_precision(z) / temperature).softmax(dim=1) for z in (s, t.detach()))
    return student, teacher


class DIST(Distiller):
    """Cross-entropy on the labels plus the two relations of `dist_loss`.

    The factor T² is that of the authors' code; the listing in the paper's appendix has none, as if beta and gamma were
    divided by T². Only CIFAR-100's temperature tells the two apart: on ImageNet T is 1.

    The intra-class relation is no mean over rows: several ranks correlate over all ranks' rows, so that a step equals
    that of one process on the joined batch. Micro-batches of an accumulated step are correlated one by one.
    """

    def __init__(self, spec: Spec, *, temperature: float, beta: float, gamma: float, ce_weight: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.beta = beta
        self.gamma = gamma
        self.ce_weight = ce_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce", "inter" and "intra"."""
        student, teacher = step.student.logits, step.teacher.logits
        everywhere = memory.everywhere(student, teacher, step.batch.rows)
        intra = memory.of_joined(intra_loss(*everywhere, temperature=self.temperature), step.batch)
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(student), step.batch.labels),
            "inter": self.beta * inter_loss(student, teacher, temperature=self.temperature),
            "intra": self.gamma * intra,
        }
