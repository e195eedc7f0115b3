"""Curriculum temperature (CTKD; Li et al., AAAI 2023, arXiv 2211.16231), its global variant on top of KD.

One temperature for all samples is learned against the student: it ascends the loss that the student descends, the
more strongly the further the curriculum has come.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision, kd_loss
from distill.types import Spec, Step


class _Reversal(torch.autograd.Function):
    """Identity, whose gradient is multiplied by minus a strength."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: Tensor, *, strength: float) -> Tensor:
    """The same values; the gradient that reaches `x` is multiplied by -strength (0: `x` learns nothing)."""
    reversed_: Tensor = _Reversal.apply(x, strength)  # type: ignore[no-untyped-call]
    return reversed_


def reversal_strength(epoch: int, curriculum_epochs: float) -> float:
    """The curriculum: (1 - cos(pi epoch / curriculum_epochs)) / 2, which rises from 0 to 1, and then 1.

    Epochs count from 1, as in the public code: of ten epochs the first gives .0245. No epochs mean 1 from the start.
    """
    done = min(epoch / curriculum_epochs, 1.0) if curriculum_epochs else 1.0
    return (1 - math.cos(math.pi * done)) / 2


class CTKD(Distiller):
    """Cross-entropy on the labels plus `kd_loss` at a learned temperature, lowest + range * sigmoid(theta).

    The gradient flows through the temperature wherever it stands, in both softmaxes and in T², and is reversed before
    theta, which is a parameter like the student's: same optimizer, same rate, same weight decay.

    On the sign: in the paper the strength rises from 0 to 1 and multiplies the gradient by its negative; in the public
    code (zhengli97/CTKD) a value falls from 0 to -1 and multiplies it as it is. Both are the same, and its logs show
    it, though its flags (`decay_max 0`, `decay_min -1`) read as if the strength fell. Its `t_end` is the range, not
    the highest temperature.

    The temperature tends to fall towards its lowest value within a few epochs (in published logs from 28 to 2.05
    where 2 was the lowest); one that stays near its highest means that training diverges.

    Attributes:
        theta: Where in its range the temperature is, 0-d.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        lowest_temperature: float,
        temperature_range: float,
        initial_theta: float,
        curriculum_epochs: float,
        ce_weight: float,
        kd_weight: float,
    ) -> None:
        super().__init__()
        self.lowest_temperature = lowest_temperature
        self.temperature_range = temperature_range
        self.theta = nn.Parameter(torch.tensor(float(initial_theta)))
        self.curriculum_epochs = curriculum_epochs
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def temperature(self, epoch: int) -> Tensor:
        """The temperature now, 0-d; what the curriculum makes of its gradient depends on the epoch."""
        theta = reverse_gradient(self.theta, strength=reversal_strength(epoch, self.curriculum_epochs))
        return self.lowest_temperature + self.temperature_range * theta.sigmoid()

    @torch.no_grad()
    def report(self, epoch: int) -> dict[str, float | Tensor]:
        """The learned "temperature", and the strength of its "reversal"."""
        strength = reversal_strength(epoch, self.curriculum_epochs)
        return {"temperature": self.temperature(epoch), "reversal": strength}

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "kd"."""
        student, teacher = step.student.logits, step.teacher.logits
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(student), step.batch.labels),
            "kd": self.kd_weight * kd_loss(student, teacher, temperature=self.temperature(step.epoch)),
        }
