"""How good a network is: accuracy, likelihood, calibration, agreement with a teacher."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from distill.numerics import autocast
from distill.types import Batch, Output

BINS = 15


class Scores(nn.Module):
    """The scores of one network on one split, gathered over batches and ranks.

    `compute` gives top1, top5, ece and agreement in percent, and nll in nats.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.top1 = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes), validate_args=False)
        self.ece = MulticlassCalibrationError(num_classes, n_bins=BINS, norm="l1", validate_args=False)
        self.nll = MeanMetric()
        self.agreement = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.compared = False

    def update(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> None:
        """Take in logits (batch, classes), labels (batch,), and the teacher's predictions (batch,) if there are any."""
        if not len(labels):
            return  # a rank may hold no row of a short last batch
        logits = logits.float()
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        self.ece.update(logits.softmax(dim=1), labels)
        self.nll.update(F.cross_entropy(logits, labels, reduction="none"))
        if teacher is not None:
            self.compared = True
            self.agreement.update(logits, teacher)

    def compute(self) -> dict[str, float]:
        """The scores so far, over all ranks."""
        scores = {name: 100 * getattr(self, name).compute().item() for name in ("top1", "top5", "ece")}
        scores["nll"] = self.nll.compute().item()
        if self.compared:
            scores["agreement"] = 100 * self.agreement.compute().item()
        return scores

    def reset(self) -> None:
        """Forget everything."""
        for metric in (self.top1, self.top5, self.ece, self.nll, self.agreement):
            metric.reset()


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        scores: As `Scores.compute`.
        predictions: The network's class for every sample, by `Batch.index`, on the CPU.
        labels: The true ones, likewise.
    """

    scores: dict[str, float]
    predictions: Tensor
    labels: Tensor


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    num_classes: int,
    device: torch.device,
    precision: str,
    teacher: Tensor | None = None,
) -> Evaluation:
    """Score a network in a single process.

    Args:
        network: Answers images in [0, 1] with `Output`; left in eval mode.
        batches: The whole split.
        num_classes: Classes of the data set.
        device: Where to run; the network is moved there.
        precision: As `choose_precision` returns it.
        teacher: The teacher's predictions for every sample of the split, by `Batch.index`.
    """
    network.eval().to(device)
    scores = Scores(num_classes).to(device)
    rows: list[Tensor] = []
    teacher = None if teacher is None else teacher.to(device)
    for batch in batches:
        batch = batch.to(device)
        with autocast(precision, device):
            output: Output = network(batch.images)
        scores.update(output.logits, batch.labels, None if teacher is None else teacher[batch.index])
        rows.append(torch.stack([batch.index, output.logits.argmax(dim=1), batch.labels]))
    index, predictions, labels = torch.cat(rows, dim=1).cpu()
    order = index.argsort()
    return Evaluation(scores.compute(), predictions[order], labels[order])
