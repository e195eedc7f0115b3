"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928): match where networks look."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.distillers.connectors import at_one_size, paired, require, stage_pairs, unit
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.errors import UserError
from distill.types import Spec, Step


def attention(maps: Tensor, *, power: float) -> Tensor:
    """Where a stage is active: powers averaged over channels, at length one over positions (section 3.1 of the paper).

    Args:
        maps: Shape (batch, channels, height, width).
        power: Exponent p of |activation|; the larger, the more the strongest channel counts.

    Returns:
        Shape (batch, height * width); zero where a sample's map is.
    """
    return unit(maps.abs().pow(power).mean(dim=1).flatten(1), dim=1)


def at_loss(s: Tensor, t: Tensor, *, power: float) -> Tensor:
    """Squared difference of the attention of one stage of each network (equation 2 of the paper).

    The mean over positions where the paper has a norm, as in the authors' public code: hence weights of 1000.

    Args:
        s: Student map, shape (batch, channels, height, width).
        t: Teacher map; channels, height and width may differ, and no gradient reaches it. The larger map is averaged
            to the size of the smaller.
        power: Exponent of `attention`.

    Returns:
        Mean over batch and positions: a scalar, in float32 at least.
    """
    s, t = at_one_size(full_precision(s), full_precision(t.detach()))
    return F.mse_loss(attention(s, power=power), attention(t, power=power))


class AT(Distiller):
    """Cross-entropy on the labels plus `at_loss`, summed over the stages that meet; see `stage_pairs`.

    Args:
        spec: Says which stages meet.
        power: Exponent of the activations, at least 1.
        ce_weight: Of the cross-entropy.
        at_weight: Of the sum over stages.

    Raises:
        UserError: If a network shows no stages, or the power is below 1, whose gradient at zero is infinite.
    """

    needs = "features"
    reads = ("stages",)

    def __init__(self, spec: Spec, *, power: float, ce_weight: float, at_weight: float) -> None:
        super().__init__()
        if power < 1:
            raise UserError(f"power={power} must be at least 1.")
        self.pairs = stage_pairs(*require(spec, AT))
        self.power = power
        self.ce_weight = ce_weight
        self.at_weight = at_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "at"."""
        maps = paired(step.student, step.teacher, self.pairs)
        losses = torch.stack([at_loss(s, t, power=self.power) for s, t in maps])
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "at": self.at_weight * losses.sum(),
        }
