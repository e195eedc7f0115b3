"""Multi-level logit distillation (MLKD; Jin et al., CVPR 2023).

The student's probabilities follow the teacher's at three levels, each at several temperatures: of every image
(instance: KD's divergence), between the classes over the batch (class: P'P), and between the images of the batch
(batch: PP'), where P holds the batch's rows of probabilities. Both networks see a weak and a strong view of each image.

`terms` says what is summed:

- "paper": the three levels at all temperatures on both views, all with the same weight. This is the method as its
  abstract and its authors' code name it; the paper's text was not at hand, so no detail beyond that is claimed.
- "released": what the authors' public code (Jin-Ying/Multi-Level-Logit-Distillation) and those built on it (LSKD, RLD)
  add up, which differs in three ways. The weak view's terms are multiplied by masks for the images (instance, batch) or
  the classes (class) of which the teacher is no surer than the median; but each term is a scalar by then, so that a
  mask only scales it by the share it keeps, about a half. Of the strong view's divergences those from the fourth
  temperature on read the weak view's logits by mistake, and are not masked. The strong view's class and batch terms are
  computed and left out of the sum.

"released" is the default, although it is not what its authors describe: weights, rates and schedules are published for
this code, and with it the numbers of MLKD and of what is built on it; none are known for the other sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import memory
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision, kd_loss
from distill.errors import UserError
from distill.models.network import Network
from distill.types import Batch, Output, Spec, Step

View = tuple[Tensor, Tensor]  # logits of student and teacher, each (batch, classes)

OF_STRONG = 3  # temperatures whose strong divergence reads the strong view in the released code


def class_correlation_loss(s: Tensor, t: Tensor, *, temperature: float) -> Tensor:
    """How far the classes' correlations over the batch, P'P (classes, classes), are from the teacher's.

    Args:
        s: Student logits, shape (batch, classes).
        t: Teacher logits, same shape; no gradient reaches them.
        temperature: Softening T > 0 of P; the result is not scaled by it.

    Returns:
        Sum of squared differences over the number of classes: a scalar, not a mean over the batch.
    """
    return _distance(_probabilities(s, temperature).T, _probabilities(t.detach(), temperature).T)


def batch_correlation_loss(s: Tensor, t: Tensor, *, temperature: float) -> Tensor:
    """How far the images' correlations, PP' (batch, batch), are from the teacher's.

    Arguments as `class_correlation_loss`.

    Returns:
        Sum of squared differences over the number of images: a scalar.
    """
    return _distance(_probabilities(s, temperature), _probabilities(t.detach(), temperature))


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (full_precision(logits) / temperature).softmax(dim=1)


def _distance(s: Tensor, t: Tensor) -> Tensor:
    """Between the products of all pairs of rows, in full precision."""
    with torch.autocast(s.device.type, enabled=False):
        return (t @ t.T - s @ s.T).square().sum() / len(s)


def kept_shares(t: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of images and of classes that the released masks keep.

    Args:
        t: Teacher logits, shape (batch, classes).

    Returns:
        Share of the rows whose largest probability is at most the rows' median, and share of the classes whose sum of
        probabilities is at most the classes' median: two scalars, at least a half each.
    """
    p = _probabilities(t.detach(), 1.0)
    rows, classes = p.amax(dim=1), p.sum(dim=0)
    # the lower of two middle values keeps what their mean would
    return (rows <= rows.median()).to(p.dtype).mean(), (classes <= classes.median()).to(p.dtype).mean()


class MLKD(Distiller):
    """Cross-entropy on both views plus the three levels. No part warms up.

    The student sees the views in two passes, weak first, as in the released code: BatchNorm normalises each view
    by its own statistics, and its running statistics follow both.

    The class and batch terms and the masks' medians are those of the joined batch of all ranks. Micro-batches of an
    accumulated step are taken one by one.

    Args:
        spec: Not read.
        temperatures: Of all three levels; KD's divergences are scaled by their square.
        ce_weight: Of the cross-entropy of each view.
        kd_weight: Of every other term.
        terms: What is summed, see above.

    Raises:
        UserError: If there is no temperature, or one that is not positive.
    """

    views = 2

    def __init__(
        self,
        spec: Spec,
        *,
        temperatures: Sequence[float],
        ce_weight: float,
        kd_weight: float,
        terms: Literal["released", "paper"],
    ) -> None:
        super().__init__()
        if not temperatures or min(temperatures) <= 0:
            raise UserError(f"temperatures={list(temperatures)} must be a list of at least one positive number.")
        self.temperatures = tuple(temperatures)
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.terms = terms

    def observe(self, student: Network, teacher: Network | None, batch: Batch) -> tuple[Output, Output]:
        """Answers to both views; those to the strong one are in `Output.strong`.

        Raises:
            UserError: If the data set gives no strong view.
        """
        if batch.strong is None:
            raise UserError(
                "The method needs a strongly augmented view of each image, but this data set's loader gives none: it"
                " must fill Batch.strong where strong_views is set, as distill.data.resident and folder do."
            )
        answer, target = super().observe(student, teacher, batch)
        strong: Output = student(batch.strong)
        assert teacher is not None
        with torch.no_grad():
            strong_target: Output = teacher(batch.strong)
        return replace(answer, strong=strong.logits), replace(target, strong=strong_target.logits)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce", "instance", "class" and "batch"."""
        student, teacher, labels = step.student, step.teacher, step.batch.labels
        assert student.strong is not None
        assert teacher.strong is not None
        weak, strong = (student.logits, teacher.logits), (student.strong, teacher.strong)
        task = torch.stack([F.cross_entropy(full_precision(s), labels) for s, _ in (weak, strong)]).sum()
        levels = (self._released if self.terms == "released" else self._paper)(weak, strong, step.batch.rows)
        for name in ("class", "batch"):  # no means over rows
            levels[name] = memory.of_joined(levels[name], step.batch)
        return {"ce": self.ce_weight * task} | {name: self.kd_weight * term for name, term in levels.items()}

    def _paper(self, weak: View, strong: View, counts: tuple[int, ...]) -> dict[str, Tensor]:
        views = weak, strong
        everywhere = [memory.everywhere(*view, counts) for view in views]
        return {
            "instance": torch.stack([_sum(kd_loss, view, self.temperatures) for view in views]).sum(),
            "class": torch.stack([_sum(class_correlation_loss, v, self.temperatures) for v in everywhere]).sum(),
            "batch": torch.stack([_sum(batch_correlation_loss, v, self.temperatures) for v in everywhere]).sum(),
        }

    def _released(self, weak: View, strong: View, counts: tuple[int, ...]) -> dict[str, Tensor]:
        everywhere = memory.everywhere(*weak, counts)
        of_rows, of_classes = kept_shares(everywhere[1])
        masked = of_rows * _sum(kd_loss, weak, self.temperatures)
        unmasked = _sum(kd_loss, strong, self.temperatures[:OF_STRONG])
        slipped = _sum(kd_loss, weak, self.temperatures[OF_STRONG:])
        return {
            "instance": masked + unmasked + slipped,
            "class": of_classes * _sum(class_correlation_loss, everywhere, self.temperatures),
            "batch": of_rows * _sum(batch_correlation_loss, everywhere, self.temperatures),
        }


def _sum(loss: Callable[..., Tensor], view: View, temperatures: Sequence[float]) -> Tensor:
    """Over the temperatures, of which there may be none."""
    student, teacher = view
    return sum((loss(student, teacher, temperature=t) for t in temperatures), student.new_zeros(()))
