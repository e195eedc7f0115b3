"""OFD, a comprehensive overhaul of feature distillation (Heo et al., ICCV 2019, arXiv 1904.01866).

Match feature maps before their last ReLU, where the sign still says whether a neuron will fire. Of what the teacher's
ReLU takes away only a margin below zero is kept, and the student is left alone where it is below that already.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.distillers.connectors import at_one_size, require, stage_pairs
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.models import layers
from distill.models.network import Network
from distill.types import Spec, Step

RARE = 1e-3  # share of negative values below which their mean is not asked for


def negative_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """The margin m: what a Gaussian is on average where it is negative.

    A channel's values before ReLU are taken as Gaussian, with what the BatchNorm before it learned. In closed form
    m = mean - deviation phi(r) / Phi(-r) with r = mean / deviation; and -3 deviations where Phi(-r), the share of
    negative values, is at most `RARE`, as in the authors' public code (clovaai/overhaul-distillation).

    Args:
        mean: Of each channel, shape (channels,).
        deviation: Its standard deviation; the sign does not count, and 0 is a Gaussian that never varies.

    Returns:
        Shape (channels,), never positive, computed in float64.
    """
    mean = mean.detach().double()
    deviation = deviation.detach().double().abs().clamp(min=torch.finfo(torch.float64).tiny)
    r = mean / deviation
    share = torch.special.ndtr(-r)
    density = torch.exp(-r.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(share > RARE, mean - deviation * density / share, -3 * deviation)


def ofd_loss(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    """Partial L2 distance to the teacher's map under the margin ReLU max(t, m).

    Where neither the target is positive nor the student above it, nothing counts.

    Args:
        s: Student map after its connector, shape (batch, channels, height, width).
        t: Teacher map before ReLU, same shape; no gradient reaches it.
        margin: Of each channel, not positive, shape (channels,).

    Returns:
        Sum over channels and positions, mean over the batch: a scalar, in float32 at least.
    """
    s = full_precision(s)
    target = torch.maximum(full_precision(t.detach()), margin.to(s.dtype)[:, None, None])
    counts = (s > target) | (target > 0)
    return ((s - target).square() * counts).sum() / len(s)


def connector(student: int, teacher: int) -> nn.Sequential:
    """From the student's channels to the teacher's: a 1 x 1 convolution, He-normal by its outputs, and BatchNorm."""
    made = nn.Sequential(layers.conv1x1(student, teacher), nn.BatchNorm2d(teacher))
    layers.he_normal_(made)
    return made


class OFD(Distiller):
    """Cross-entropy on the labels plus `ofd_loss` over the stages that meet, each counting half of the next deeper one.

    The teacher is in eval mode. The authors' code and megvii-research/mdistiller leave it in training mode, so that it
    normalises by the batch and its running statistics drift: not offered, for here a teacher never changes.

    What is not published, for networks that public code does not run:

    - Maps of two sizes: the larger is averaged to the smaller (for a larger teacher's as in mdistiller).
    - Networks of unequally many stages meet by `connectors.stage_pairs`, the last with the last.
    - A network that shows no maps before ReLU is read after it. A teacher that does not say which normalisations come
      before (ShuffleNets, whose last maps join two branches) has margins of 0: its rectified map is the target.

    Args:
        spec: Says which stages meet, and their channels.
        ce_weight: Of the cross-entropy.
        ofd_weight: Of the sum over stages.

    Raises:
        UserError: If a network shows no stages.
    """

    needs = "features"
    reads = ("stages",)

    def __init__(self, spec: Spec, *, ce_weight: float, ofd_weight: float) -> None:
        super().__init__()
        student, teacher = require(spec, OFD)
        self.ce_weight = ce_weight
        self.ofd_weight = ofd_weight
        # places in `preacts`, which has no stem
        self.pairs = [(i - 1, j - 1) for i, j in stage_pairs(student, teacher)]
        inputs, outputs = (shapes.preacts or shapes.stages[1:] for shapes in (student, teacher))
        self.connectors = nn.ModuleList(connector(inputs[i][0], outputs[j][0]) for i, j in self.pairs)
        for j, (channels, *_) in enumerate(outputs):
            # of the teacher, hence in no checkpoint
            self.register_buffer(f"margin{j}", torch.zeros(channels), persistent=False)

    def prepare(self, student: Network, teacher: Network | None) -> None:
        """Take the margins from the teacher's normalisations."""
        assert teacher is not None
        for j, norm in enumerate(teacher.norms):
            margin = self.get_buffer(f"margin{j}")
            mean, deviation = (
                value if isinstance(value, Tensor) else margin.new_full(margin.shape, other)
                for value, other in ((norm.bias, 0.0), (norm.weight, 1.0))
            )
            margin.copy_(negative_mean(mean, deviation))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "ofd"."""
        students, teachers = (output.preacts or output.stages[1:] for output in (step.student, step.teacher))
        losses = []
        for connect, (i, j) in zip(self.connectors, self.pairs, strict=True):
            s, t = at_one_size(students[i], full_precision(teachers[j]))
            losses.append(ofd_loss(connect(s), t, self.get_buffer(f"margin{j}")))
        last = len(losses) - 1
        total = torch.stack([loss / 2 ** (last - place) for place, loss in enumerate(losses)]).sum()
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "ofd": self.ofd_weight * total,
        }
