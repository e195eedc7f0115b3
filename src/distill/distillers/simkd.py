"""SimKD (Chen et al., CVPR 2022, arXiv 2203.14001): reuse the teacher's classifier.

The student only learns to make the map that the teacher's classifier reads. What predicts is made of three parts: the
student up to its last map, a projector, and the teacher's classifier.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.distillers.connectors import require, shrink
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.errors import UserError
from distill.models import layers
from distill.models.network import Network
from distill.types import Batch, Output, Part, Shapes, Spec, Step

PROBE = 32  # px; networks of a fixed size resize it


def simkd_loss(s: Tensor, t: Tensor) -> Tensor:
    """Squared difference of the projected map from the teacher's.

    Args:
        s: Student map after the projector, shape (batch, channels, height, width).
        t: The map that the teacher's classifier pools, no smaller, averaged to that height and width; no gradient
            reaches it.

    Returns:
        Mean over all elements: a scalar, in float32 at least.
    """
    return F.mse_loss(full_precision(s), shrink(full_precision(t.detach()), s.shape[-2:]))


def projector(student: int, teacher: int, *, reduction: int) -> nn.Sequential:
    """1 x 1, 3 x 3 and 1 x 1 convolutions, each with BatchNorm and ReLU.

    Args:
        student: Channels of its map.
        teacher: Channels of the map to make.
        reduction: By which the channels between are fewer than the teacher's.
    """
    middle = teacher // reduction
    parts: list[nn.Module] = []
    for convolution in (
        layers.conv1x1(student, middle),
        layers.conv3x3(middle, middle),
        layers.conv1x1(middle, teacher),
    ):
        parts += [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
    return nn.Sequential(*parts)


class Reader(nn.Module):
    """Projector and classifier: what reads a student's answer anew.

    Args:
        student: Shapes of the student's answer.
        teacher: Shapes of the teacher's.
        reduction: See `projector`.
    """

    def __init__(self, student: Shapes, teacher: Shapes, *, reduction: int) -> None:
        super().__init__()
        assert teacher.final is not None
        deepest = student.stages[-1] if student.show("stages") else student.final
        assert deepest is not None
        self.reads_final = deepest == student.final
        (channels, *own), (wanted, *others) = deepest, teacher.final
        self.size: Sequence[int] = (min(own[0], others[0]), min(own[1], others[1]))
        self.projector = projector(channels, wanted, reduction=reduction)
        self.classifier: nn.Module = nn.Identity()  # the teacher's, once it is known

    def source(self, answer: Output) -> Tensor:
        """The student's map that is projected."""
        found = answer.final if self.reads_final else answer.stages[-1]
        assert found is not None
        return found

    def forward(self, answer: Output) -> Output:
        """The student's answer with other logits, and with what led to them in `final` and `pooled`."""
        final = self.projector(shrink(self.source(answer), self.size))
        pooled = layers.pool(final)
        with torch.autocast(pooled.device.type, enabled=False):
            logits = self.classifier(full_precision(pooled))
        return replace(answer, logits=logits, final=final, pooled=pooled)


class Reused(Network):
    """A student read by its teacher's classifier: what is deployed, and may be a teacher itself.

    Args:
        student: Looks at images, and normalises them.
        reader: Has the classifier.
    """

    def __init__(self, student: Network, reader: Reader) -> None:
        super().__init__()
        self.student = student
        self.reader = reader

    @property
    def classifier(self) -> nn.Linear:
        head = self.reader.classifier
        assert isinstance(head, nn.Linear)
        return head

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return self.student.norms

    def normalise(self, *, mean: Sequence[float], std: Sequence[float], input_size: int | None) -> None:
        self.student.normalise(mean=mean, std=std, input_size=input_size)

    def forward(self, images: Tensor) -> Output:
        answer: Output = self.reader(self.student(images))
        return answer


class SimKD(Distiller):
    """The squared difference of `simkd_loss` alone; with a `ce_weight` other than 0 also cross-entropy.

    `Output.logits` of the student are the composite's, in training as in evaluation: those of a copy of the teacher's
    classifier, which is never trained, over the pooled projection. The export holds all three parts, and the student's
    own classifier, which is never trained either.

    The teacher's map is the one that its classifier pools. The student's is that of its last stage: of MobileNetV2 and
    ShuffleNetV2 the one before their last 1 x 1 convolution, as published, which is left out and not trained. A wide
    ResNet's stages end before a normalisation and ReLU: here the map behind them is read, and made of a teacher. (The
    authors' "WRN" are other networks, whose stages end rectified.) The larger map is averaged to the size of the
    smaller, the student's before the projector.

    Args:
        spec: Says the shapes of both maps.
        reduction: By which the projector's channels are fewer than the teacher's.
        ce_weight: Of the cross-entropy of the composite's logits.
        simkd_weight: Of the squared difference.

    Raises:
        UserError: If the teacher does not show the map that it pools, or the student neither that nor stages, or the
            projector would have no channels.
    """

    needs = "features"

    @classmethod
    def lacks(cls, student: Shapes, teacher: Shapes) -> tuple[str, Part] | None:
        """As the contract's: the teacher's map before its classifier; the student's, or one of its last stage."""
        if not (student.show("final") or student.show("stages")):
            return "student", "final"
        return None if teacher.show("final") else ("teacher", "final")

    def __init__(self, spec: Spec, *, reduction: int, ce_weight: float, simkd_weight: float) -> None:
        super().__init__()
        student, teacher = require(spec, SimKD)
        assert teacher.final is not None
        if not 1 <= reduction <= teacher.final[0]:
            raise UserError(f"reduction={reduction} must be from 1 to the teacher's {teacher.final[0]} channels.")
        self.ce_weight = ce_weight
        self.simkd_weight = simkd_weight
        self.reader = Reader(student, teacher, reduction=reduction)

    def prepare(self, student: Network, teacher: Network | None) -> None:
        """Copy the teacher's classifier, and freeze what of the student leads to nothing but its own."""
        assert teacher is not None
        self.reader.classifier = copy.deepcopy(teacher.classifier).train().requires_grad_(False)
        probed = copy.deepcopy(student).eval().requires_grad_(True)  # a copy, so that no statistics move
        with torch.enable_grad():
            source = self.reader.source(probed(torch.zeros(1, 3, PROBE, PROBE, device=student.mean.device)))
            gradients = torch.autograd.grad(source.sum(), list(probed.parameters()), allow_unused=True)
        for parameter, gradient in zip(student.parameters(), gradients, strict=True):
            if gradient is None:
                parameter.requires_grad_(False)

    def observe(self, student: Network, teacher: Network | None, batch: Batch) -> tuple[Output, Output]:
        """The composite's answer, and the teacher's."""
        answer, target = super().observe(student, teacher, batch)
        return self.reader(answer), target

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The term "simkd", after "ce" where its weight is not 0."""
        s, t = step.student.final, step.teacher.final
        assert s is not None
        assert t is not None
        terms = {}
        if self.ce_weight:
            terms["ce"] = self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels)
        terms["simkd"] = self.simkd_weight * simkd_loss(s, t)
        return terms

    def deploy(self, student: Network, teacher: Network | None) -> nn.Module:
        """Student, projector and the teacher's classifier."""
        return Reused(student, self.reader)
