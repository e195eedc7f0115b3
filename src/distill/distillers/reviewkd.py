"""ReviewKD, knowledge review (Chen et al., CVPR 2021, arXiv 2104.09044).

Early stages of the teacher teach later ones of the student: from its pooled features upwards the student's maps are
fused one after the other, and each fusion is compared with a stage of the teacher.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.distillers.connectors import require, stage_pairs
from distill.distillers.contract import Distiller
from distill.distillers.dkd import ramp
from distill.distillers.kd import full_precision
from distill.errors import UserError
from distill.models import layers
from distill.types import Output, Spec, Step

Size = tuple[int, int]

LEVELS = (4, 2, 1)  # heights of the pyramid under a map


def hcl_loss(s: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    """Hierarchical context loss: squared differences of maps and of averages of them.

    Of each pair of maps the mean squared difference counts 1, that of their averages over 4 x 4, 2 x 2 and 1 x 1 fields
    a half of the one before, as far as the map is larger; the weighted mean of these is taken, as in the authors'
    public code (dvlab-research/ReviewKD).

    Args:
        s: Student maps, each (batch, channels, height, width).
        t: Teacher maps of the same shapes; no gradient reaches them.

    Returns:
        Sum over the pairs: a scalar, in float32 at least.
    """
    losses = []
    for student, teacher in zip(s, t, strict=True):
        a, b = full_precision(student), full_precision(teacher.detach())
        total, weight, weights = F.mse_loss(a, b), 1.0, 1.0
        for level in LEVELS:
            if level < min(a.shape[-2:]):
                weight /= 2
                weights += weight
                total = total + weight * F.mse_loss(F.adaptive_avg_pool2d(a, level), F.adaptive_avg_pool2d(b, level))
        losses.append(total / weights)
    return torch.stack(losses).sum()


class Norm(nn.BatchNorm2d):
    """BatchNorm that takes a single value per channel, which has no variance, by its running statistics.

    Pooled features are maps of one position: PyTorch's refuses them where an epoch ends in a batch of one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Fusion(nn.Module):
    """Attention-based fusion: a map of the student joined with what is deeper.

    Args:
        inputs: Channels of the student's map.
        middle: Channels that all fusions work with.
        outputs: Channels of the teacher's map.
        deepest: There is nothing deeper to be joined with.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, *, deepest: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(layers.conv1x1(inputs, middle), Norm(middle))
        self.leave = nn.Sequential(layers.conv3x3(middle, outputs), Norm(outputs))
        for convolution in (self.enter[0], self.leave[0]):
            nn.init.kaiming_uniform_(cast(nn.Conv2d, convolution).weight, a=1)
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: Size) -> tuple[Tensor, Tensor]:
        """Fuse, and say it in the teacher's channels.

        Args:
            x: Student map, shape (batch, inputs, height, width).
            deeper: What the fusion of the deeper stage passed on, shape (batch, middle, any height, any width).
            size: Height and width of the teacher's map.

        Returns:
            What is passed on, (batch, middle, *size), and what is compared, (batch, outputs, *size).
        """
        x = self.enter(x)
        if self.attention is not None:
            assert deeper is not None
            deeper = _resized(deeper, (x.shape[-2], x.shape[-1]))
            shares = self.attention(torch.cat([x, deeper], dim=1)).sigmoid()
            x = x * shares[:, :1] + deeper * shares[:, 1:]
        x = _resized(x, size)
        return x, self.leave(x)


def _resized(x: Tensor, size: Size) -> Tensor:
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size, mode="nearest")


class ReviewKD(Distiller):
    """Cross-entropy on the labels plus `hcl_loss` of the fused student, which warms up linearly.

    Compared are the pooled features, as a map of one position, and the teacher's maps before the last ReLU of each
    stage; of the student the maps after it, or before it on ImageNet. The warm-up counts epochs from 1, as
    megvii-research/mdistiller does; the authors' code counts from 0 and begins with an epoch that only learns the
    labels.

    For networks of unequally many stages nothing is published: public code names the channels of each of its pairs.
    Here they meet by `connectors.stage_pairs`, the last with the last, and a stage that meets none takes no part. From
    a network without maps before ReLU those after it are read.

    Args:
        spec: Says which stages meet, and their shapes.
        student_maps: "stages", after ReLU, or "preacts", before it.
        widest: Channels that fusions work with at most; else they are those of the student's pooled features.
        warmup_epochs: Epochs until the term has its full weight.
        ce_weight: Of the cross-entropy.
        review_weight: Of the comparison.

    Raises:
        UserError: If a network shows no stages or no pooled features, or fusions would have no channels.
    """

    needs = "features"
    reads = ("stages", "pooled")

    def __init__(
        self,
        spec: Spec,
        *,
        student_maps: Literal["stages", "preacts"],
        widest: int,
        warmup_epochs: float,
        ce_weight: float,
        review_weight: float,
    ) -> None:
        super().__init__()
        if widest < 1:
            raise UserError(f"widest={widest} must be a whole number of at least 1.")
        student, teacher = require(spec, ReviewKD)
        assert student.pooled is not None
        assert teacher.pooled is not None
        self.rectified = student_maps == "stages"
        self.warmup_epochs = warmup_epochs
        self.ce_weight = ce_weight
        self.review_weight = review_weight
        # places in `preacts`, which has no stem; deepest first
        self.pairs = [(i - 1, j - 1) for i, j in reversed(stage_pairs(student, teacher))]
        own = student.preacts if student.preacts and not self.rectified else student.stages[1:]
        other = teacher.preacts or teacher.stages[1:]
        channels = [(student.pooled, teacher.pooled), *((own[i][0], other[j][0]) for i, j in self.pairs)]
        self.sizes: list[Size] = [(1, 1), *((other[j][1], other[j][2]) for _, j in self.pairs)]
        middle = min(widest, student.pooled)
        self.fusions = nn.ModuleList(
            Fusion(inputs, middle, outputs, deepest=not place) for place, (inputs, outputs) in enumerate(channels)
        )

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "review"."""
        warm = ramp(step.epoch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "review": warm * self.review_weight * hcl_loss(self.fused(step.student), self.targets(step.teacher)),
        }

    def fused(self, student: Output) -> list[Tensor]:
        """The student's fused maps, deepest first, in the shapes of `targets`."""
        assert student.pooled is not None
        maps = student.preacts if student.preacts and not self.rectified else student.stages[1:]
        passed: Tensor | None = None
        compared = []
        path = [student.pooled[:, :, None, None], *(maps[i] for i, _ in self.pairs)]
        for fuse, x, size in zip(self.fusions, path, self.sizes, strict=True):
            passed, out = fuse(x, passed, size)
            compared.append(out)
        return compared

    def targets(self, teacher: Output) -> list[Tensor]:
        """The teacher's pooled features as a map of one position, and its stages' maps, deepest first."""
        assert teacher.pooled is not None
        maps = teacher.preacts or teacher.stages[1:]
        return [teacher.pooled[:, :, None, None], *(maps[j] for _, j in self.pairs)]
