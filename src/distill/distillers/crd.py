"""Contrastive representation distillation (CRD; Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699).

Both networks' pooled features are embedded on one sphere. There the student's is to be told apart, as the teacher's of
the same image, from the teacher's of images of other classes, and the teacher's from the student's likewise; what is
compared with lies in two memory banks that hold one row per training image.
"""

import logging
import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import memory
from distill.distillers.connectors import require
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.distillers.nce import log_sums, nce_loss
from distill.distillers.negatives import Negatives
from distill.errors import UserError
from distill.types import Spec, Step

log = logging.getLogger("distill")


def crd_loss(
    s: Tensor,
    t: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    index: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    log_z: Tensor,
) -> Tensor:
    """Noise-contrastive loss of both directions, see `nce_loss`: student to teacher's bank, teacher to student's.

    Args:
        s: Embedded student rows of length 1, shape (batch, embedding_dim).
        t: Embedded teacher rows, same shape; the gradient trains the teacher's embedding.
        student_bank: Past student rows of length 1, shape (samples, embedding_dim).
        teacher_bank: Past teacher rows, same shape.
        index: Sample of each row, shape (batch,), int64.
        negatives: Samples of other classes, shape (batch, K), int64.
        temperature: Divides the products.
        log_z: Logarithms of the normalisation constants of the student's and of the teacher's products, shape (2,).

    Returns:
        Mean over the batch of the sum over the K + 1 candidates: a scalar, not negative.
    """
    one = nce_loss(s / temperature, teacher_bank, index, negatives, log_z=log_z[0])
    other = nce_loss(t / temperature, student_bank, index, negatives, log_z=log_z[1])
    return (one + other).mean()


class CRD(Distiller):
    """Cross-entropy on the labels plus `crd_loss` on embedded features.

    As in the authors' code (HobbitLong/RepDistiller): linear embeddings of both networks, trained; the positive is the
    bank's row of the image itself; K negatives per image, the same in both directions, uniform over the images of other
    classes and without replacement (see `Negatives`, also for fewer than K); each Z is N times the mean of the
    exponentials of the first batch, and stays; after each batch a bank's row becomes .5 of itself plus .5 of the new
    one, on the sphere; rows are random at first.

    Ours:

    - Z and the banks follow the batch of all ranks, in rank order: a step equals that of one process.
    - Negatives are drawn on the device, and neither of them gathered at once nor all logarithms taken one by one; the
      sums are the same.
    - Loss and banks are float32 under mixed precision.

    The banks are in every checkpoint, as a resumed run needs them: for CIFAR-100 51 MB, for ImageNet 1.3 GB.

    Attributes:
        student_bank: Row of each training sample, of length 1 once seen, shape (samples, embedding_dim).
        teacher_bank: Likewise.
        log_z: Logarithms of the normalisation constants, shape (2,); infinite before the first batch.
    """

    needs = "features"
    reads = ("pooled",)
    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor

    def __init__(
        self,
        spec: Spec,
        *,
        embedding_dim: int,
        negatives: int,
        temperature: float,
        momentum: float,
        ce_weight: float,
        crd_weight: float,
    ) -> None:
        """Make the embeddings and the banks.

        Raises:
            UserError: If a network does not show its pooled features, the banks do not fit the memory, or there are no
                negatives: none asked for, or samples of one class alone.
        """
        super().__init__()
        student, teacher = require(spec, CRD)
        assert student.pooled is not None
        assert teacher.pooled is not None
        self.temperature = temperature
        self.momentum = momentum
        self.ce_weight = ce_weight
        self.crd_weight = crd_weight
        self.negatives = Negatives(spec.labels, num_classes=spec.num_classes, count=negatives)
        _state_memory(spec.num_samples, embedding_dim)
        self.student_embedding = nn.Linear(student.pooled, embedding_dim)
        self.teacher_embedding = nn.Linear(teacher.pooled, embedding_dim)
        bound = math.sqrt(3 / embedding_dim)  # rows of about length 1
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(spec.num_samples, embedding_dim).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), torch.inf))
        self._measured = False

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and "crd"."""
        s = _embed(self.student_embedding, step.student.pooled)
        t = _embed(self.teacher_embedding, step.teacher.pooled)
        drawn = self.negatives(step.batch.index, step.batch.labels)
        log_z = self.log_z if self._has_z() else self._first_z(s, t, step, drawn)
        step.scratch.update(s=s.detach(), t=t.detach(), log_z=log_z)
        loss = crd_loss(
            *(s, t, self.student_bank, self.teacher_bank, step.batch.index, drawn),
            temperature=self.temperature,
            log_z=log_z,
        )
        return {
            "ce": self.ce_weight * F.cross_entropy(full_precision(step.student.logits), step.batch.labels),
            "crd": self.crd_weight * loss,
        }

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Move the rows of all ranks' samples towards their new embeddings, and let other negatives be drawn."""
        counts = step.batch.rows
        index = memory.gather(step.batch.index, counts)
        for name, bank in (("s", self.student_bank), ("t", self.teacher_bank)):
            rows = memory.gather(step.scratch[name], counts)
            moved = F.normalize(torch.lerp(rows, bank[index], self.momentum))
            bank.index_copy_(0, index, moved)
        self.log_z.copy_(step.scratch["log_z"])
        self.negatives.advance()

    def _has_z(self) -> bool:
        # the device is asked until it says yes, which is once or twice in a run
        self._measured = self._measured or bool(self.log_z.isfinite().all())
        return self._measured

    def _first_z(self, s: Tensor, t: Tensor, step: Step, drawn: Tensor) -> Tensor:
        """Logarithms of N times the mean exponential over all candidates of all ranks' rows, shape (2,)."""
        found = []
        for rows, bank in ((s, self.teacher_bank), (t, self.student_bank)):
            sums = log_sums(rows.detach() / self.temperature, bank, step.batch.index, drawn)
            everywhere = memory.gather(sums, step.batch.rows)
            candidates = len(everywhere) * (drawn.shape[1] + 1)
            found.append(everywhere.logsumexp(dim=0) + math.log(len(bank) / candidates))
        return torch.stack(found)


def _embed(embedding: nn.Module, pooled: Tensor | None) -> Tensor:
    """On the unit sphere, in full precision."""
    assert pooled is not None
    with torch.autocast(pooled.device.type, enabled=False):
        return F.normalize(embedding(full_precision(pooled)))


def _state_memory(samples: int, features: int) -> None:
    """Log what the banks take, before they do, or refuse what the machine, or its GPUs, cannot hold.

    Raises:
        UserError: Saying how many features would fit.
    """
    there = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    if torch.cuda.is_available():
        gpus = range(torch.cuda.device_count())
        there.append(max(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus))
    column = 2 * samples * torch.get_default_dtype().itemsize
    size = f"CRD's two banks of {samples:,} x {features:,} numbers take {features * column / 1e9:,.2f} GB"
    if there and features * column > min(there):
        raise UserError(
            f"{size}, more than the {min(there) / 1e9:,.1f} GB there are: set embedding_dim to less than"
            f" {min(there) // column:,}, or train on fewer images."
        )
    log.info("%s, in memory and in each checkpoint", size)
