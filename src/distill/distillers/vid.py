"""Variational information distillation (Ahn et al., CVPR 2019, arXiv 1904.05835).

The student shares information with the teacher as far as the teacher's maps can be predicted from its own: a lower
bound of it is the likelihood under a Gaussian whose mean is regressed and whose variance per channel is learned.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.distillers.connectors import at_one_size, paired, require, stage_pairs
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.errors import UserError
from distill.models.layers import conv1x1
from distill.types import Spec, Step

FLOOR = 1e-5  # under every variance, as in the authors' public code


def vid_loss(s: Tensor, t: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's map, up to a constant: the paper's Gaussian of a variance per channel.

    Args:
        s: Its mean as predicted from the student's map, shape (batch, channels, height, width).
        t: Teacher map, same shape; no gradient reaches it.
        variance: Of every channel, shape (channels,), positive.

    Returns:
        Mean over all elements, in nats: a scalar, negative where small variances are well deserved.
    """
    s, t, variance = full_precision(s), full_precision(t.detach()), full_precision(variance)[:, None, None]
    return 0.5 * ((s - t).square() / variance + variance.log()).mean()


class Prediction(nn.Module):
    """What a stage of the student says of one of the teacher's: a mean by three 1 x 1 convolutions, and a variance.

    Args:
        student: Channels of the student's map.
        teacher: Channels of the teacher's.
        initial_variance: Of every channel at the start.
    """

    def __init__(self, student: int, teacher: int, *, initial_variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            conv1x1(student, teacher),
            nn.ReLU(),
            conv1x1(teacher, teacher),
            nn.ReLU(),
            conv1x1(teacher, teacher),
        )
        self.spread = nn.Parameter(torch.full((teacher,), math.log(math.expm1(initial_variance - FLOOR))))

    @property
    def variance(self) -> Tensor:
        """Shape (teacher,); softplus keeps it positive."""
        return F.softplus(self.spread) + FLOOR

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """`vid_loss` of both maps, the larger averaged to the size of the smaller."""
        s, t = at_one_size(s, full_precision(t))
        return vid_loss(self.mean(s), t, self.variance)


class VID(Distiller):
    """Cross-entropy on the labels plus `vid_loss`, summed over the stages that meet; see `stage_pairs`.

    The variances are trained, as in the paper and in its authors' code (megvii-research/mdistiller leaves them out of
    the optimizer).

    Args:
        spec: Says which stages meet, and their channels.
        initial_variance: Of every channel.
        ce_weight: Of the cross-entropy.
        vid_weight: Of the sum over stages.

    Raises:
        UserError: If a network shows no stages, or the variance is too small.
    """

    needs = "features"
    reads = ("stages",)

    def __init__(self, spec: Spec, *, initial_variance: float, ce_weight: float, vid_weight: float) -> None:
        super().__init__()
        if initial_variance <= FLOOR:
            raise UserError(f"initial_variance={initial_variance} must be more than {FLOOR}.")
        student, teacher = require(spec, VID)
        self.pairs = stage_pairs(student, teacher)
        self.predictions = nn.ModuleList(
            Prediction(student.stages[i][0], teacher.stages[j][0], initial_variance=initial_variance)
            for i, j in self.pairs
        )
        self.ce_weight = ce_weight
        self.vid_weight = vid_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "vid"."""
        maps = paired(step.student, step.teacher, self.pairs)
        losses = torch.stack([predict(s, t) for predict, (s, t) in zip(self.predictions, maps, strict=True)])
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "vid": self.vid_weight * losses.sum(),
        }
