"""CAT-KD, class attention transfer (Guo et al., CVPR 2023, arXiv 2304.12777): teach where a network sees each class.

With a classifier of 1 x 1 convolutions before the pooling, the map of a class says where in the image its score comes
from: a class activation map (CAM). The student is to have the teacher's.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.distillers.connectors import require, unit
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.errors import UserError
from distill.models.network import Network
from distill.types import Batch, Output, Spec, Step


def class_maps(final: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps: a classifier without bias at each position.

    Their means over positions are the logits that the classifier would give the pooled map, but for its bias.

    Args:
        final: The map that is pooled, shape (batch, features, height, width).
        weight: The classifier's, shape (classes, features).

    Returns:
        Shape (batch, classes, height, width), in float32 at least, also under autocast.
    """
    final = full_precision(final)
    with torch.autocast(final.device.type, enabled=False):
        return F.conv2d(final, weight[:, :, None, None].to(final.dtype))


def cat_loss(s: Tensor, t: Tensor, *, size: int, normalize: bool) -> Tensor:
    """Squared difference of class activation maps.

    Args:
        s: Student's, shape (batch, classes, height, width).
        t: Teacher's, perhaps of another height and width; no gradient reaches them.
        size: Height and width to which both are averaged.
        normalize: Whether each map is brought to length one, after that; one that is zero stays so.

    Returns:
        Mean over all elements: a scalar.
    """
    maps = [F.adaptive_avg_pool2d(full_precision(x), size).flatten(2) for x in (s, t.detach())]
    student, teacher = (unit(x, dim=2) if normalize else x for x in maps)
    return F.mse_loss(student, teacher)


class CATKD(Distiller):
    """Cross-entropy on the labels plus `cat_loss`; the paper's CAT, without a task, is a `ce_weight` of 0.

    The paper replaces both networks' linear classifier by 1 x 1 convolutions without bias before the pooling. As both
    are linear, that is the network as it was with a bias of 0, so nothing is replaced: the student's bias is set to 0
    and stays there, and what is evaluated and exported is an ordinary student. Its classifier starts as the network
    initialises it. Of the teacher the maps are made from the classifier's weight; its bias plays no part in the loss,
    and its scores are those of the whole teacher.

    What reads `Output.final` after this method, in a sum of methods, sees the class activation maps, which are what is
    pooled.

    Args:
        spec: Not read but for what the networks show.
        size: Height and width at which the maps are compared.
        normalize: Whether each map is brought to length one: on for networks of different kinds.
        ce_weight: Of the cross-entropy.
        cat_weight: Of the maps; beta in the paper.

    Raises:
        UserError: If a network does not show the map that it pools, or the size is less than 1.
    """

    needs = "features"
    reads = ("final",)

    def __init__(self, spec: Spec, *, size: int, normalize: bool, ce_weight: float, cat_weight: float) -> None:
        super().__init__()
        require(spec, CATKD)
        if size < 1:
            raise UserError(f"size={size} must be a whole number of at least 1.")
        self.size = size
        self.normalize = normalize
        self.ce_weight = ce_weight
        self.cat_weight = cat_weight

    def prepare(self, student: Network, teacher: Network | None) -> None:
        """Take the bias of the student's classifier away."""
        bias = student.classifier.bias
        if bias is not None:
            nn.init.zeros_(bias).requires_grad_(False)

    def observe(self, student: Network, teacher: Network | None, batch: Batch) -> tuple[Output, Output]:
        """The answers, with class activation maps in `final`."""
        assert teacher is not None
        answer, target = super().observe(student, teacher, batch)
        return _with_maps(student, answer), _with_maps(teacher, target)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The term "cat", after "ce" where its weight is not 0."""
        s, t = step.student.final, step.teacher.final
        assert s is not None
        assert t is not None
        terms = {}
        if self.ce_weight:
            terms["ce"] = self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels)
        terms["cat"] = self.cat_weight * cat_loss(s, t, size=self.size, normalize=self.normalize)
        return terms


def _with_maps(network: Network, answer: Output) -> Output:
    assert answer.final is not None
    return replace(answer, final=class_maps(answer.final, network.classifier.weight))
