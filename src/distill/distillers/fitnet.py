"""FitNets (Romero et al., ICLR 2015, arXiv 1412.6550): regress a middle layer of the teacher.

Trained jointly with the task, as in the public code of the methods' comparisons, not in the paper's two stages.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from distill.distillers.connectors import require, shrink
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.errors import UserError
from distill.types import Spec, Step


def fitnet_loss(s: Tensor, t: Tensor) -> Tensor:
    """Squared difference of the student's regressed map from the teacher's (equation 3 of the paper).

    Args:
        s: Regressed student map, shape (batch, channels, height, width).
        t: Teacher map, same shape; no gradient reaches it.

    Returns:
        Mean over all elements: a scalar, in float32 at least.
    """
    return F.mse_loss(full_precision(s), full_precision(t.detach()))


def regressor(student: tuple[int, int, int], teacher: tuple[int, int, int]) -> nn.Sequential:
    """From the student's map to the teacher's: a convolution that fits the sizes, BatchNorm, ReLU.

    A 3 x 3 convolution of stride 2 to half the size, a transposed 4 x 4 one of stride 2 to twice the size, else one
    without padding whose kernel fits (1 x 1 for equal sizes), as in HobbitLong/RepDistiller. Where the student's map is
    smaller by another factor nothing is published: a 1 x 1 convolution, and the teacher's map is averaged to its size.
    The convolution has no bias, which the BatchNorm behind it would take out again.

    Args:
        student: Channels, height and width of its map.
        teacher: Likewise.
    """
    (inputs, height, width), (outputs, *target) = student, teacher
    convolution: nn.Module
    if [height, width] == [2 * size for size in target]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    elif [2 * height, 2 * width] == target:
        convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    else:
        kernel = max(1, 1 + height - target[0]), max(1, 1 + width - target[1])
        convolution = nn.Conv2d(inputs, outputs, kernel, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class FitNet(Distiller):
    """Cross-entropy on the labels plus `fitnet_loss` of one stage, the same of both networks.

    Args:
        spec: Says the sizes of both maps.
        hint: The stage, counted from 1; also where the networks have different numbers of stages, as published.
        ce_weight: Of the cross-entropy.
        fitnet_weight: Of the hint.

    Raises:
        UserError: If a network shows no stages, or has no such stage.
    """

    needs = "features"
    reads = ("stages",)

    def __init__(self, spec: Spec, *, hint: int, ce_weight: float, fitnet_weight: float) -> None:
        super().__init__()
        student, teacher = require(spec, FitNet)
        last = min(len(student.stages), len(teacher.stages)) - 1
        if not 1 <= hint <= last:
            raise UserError(f"hint={hint} must be a stage of both networks: 1 to {last}.")
        self.hint = hint
        self.ce_weight = ce_weight
        self.fitnet_weight = fitnet_weight
        self.regressor = regressor(student.stages[hint], teacher.stages[hint])

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "fitnet"."""
        regressed: Tensor = self.regressor(step.student.stages[self.hint])
        target = shrink(full_precision(step.teacher.stages[self.hint]), regressed.shape[-2:])
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "fitnet": self.fitnet_weight * fitnet_loss(regressed, target),
        }
