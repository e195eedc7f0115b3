"""Multi-perspective contrastive logit distillation (MCLD, arXiv 2411.10693).

The student's row of logits is an anchor, the teacher's rows are the keys: it is pulled to the teacher's row of the same
sample, away from a queue of past rows (instance-wise) and from the batch's (sample-wise), and to the teacher's rows of
its class (category-wise).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import memory
from distill.capacity import total_memory
from distill.distillers.contract import Distiller
from distill.distillers.dkd import ramp
from distill.distillers.infonce import Lengths, infonce
from distill.distillers.kd import full_precision
from distill.errors import UserError
from distill.types import Batch, Spec, Step

MAX_QUEUE = 65_536  # MoCo's length; with ImageNet's 1,000 classes 262 MB

CHOICES = {
    "normalize": ("l2", "center_l2", "none"),
    "queue_init": ("empty", "gaussian"),
    "queue_dtype": ("float32", "bfloat16"),
    "target_mask": ("none", "same_class", "target_logit"),
    "category_reduction": ("valid", "all"),
    "category_denominator": ("printed", "supcon", "infonce"),
}


def instance_loss(s: Tensor, t: Tensor, queue: Tensor, *, temperature: float, masked: Tensor | None = None) -> Tensor:
    """Tell the own teacher row from past ones (Eqs. 2-4): cross-entropy over own key and queue.

    Args:
        s: Normalised student rows, shape (batch, classes).
        t: Normalised teacher rows, same shape; no gradient reaches them.
        queue: Normalised past teacher rows, shape (K, classes), of any floating dtype; no gradient reaches them.
        temperature: Divides the similarities.
        masked: Entries that are no negatives, boolean, broadcast to (batch, K); None: all are.

    Returns:
        Mean over the batch: a scalar, never negative; zero where no negative is left. It has no second derivative.
    """
    positive = (full_precision(s) * full_precision(t.detach())).sum(dim=1) / temperature
    left_out = None if masked is None else masked.broadcast_to(len(s), len(queue))
    of_part = None if left_out is None else lambda part: left_out[:, part]
    return infonce(full_precision(s) / temperature, positive, queue, masked=of_part).mean()


def sample_loss(
    s: Tensor, t: Tensor, *, temperature: float, first_row: int = 0, masked: Tensor | None = None
) -> Tensor:
    """Tell the own teacher row from the batch's others (Eqs. 5-6).

    Args:
        s: Normalised student rows, shape (batch, classes).
        t: Normalised teacher rows of the joined batch, shape (joined, classes); no gradient reaches them.
        temperature: Divides the similarities.
        first_row: Which row of `t` belongs to the first of `s`.
        masked: Rows of `t` that are no negatives, boolean, shape (batch, joined); the own row counts in any case.

    Returns:
        Mean over the batch: a scalar, never negative.
    """
    return _sample(_similarities(s, t, temperature), first_row, masked)


def category_loss(
    s: Tensor,
    t: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    denominator: str = "printed",
    reduction: str = "valid",
    first_row: int = 0,
) -> Tensor:
    """Draw the anchor to the teacher's rows of its class, the own one excluded, against other classes (Eqs. 7-8).

    Args:
        s: Normalised student rows, shape (batch, classes).
        t: Normalised teacher rows of the joined batch, shape (joined, classes); no gradient reaches them.
        labels: Class of each row of `t`, shape (joined,), int64.
        temperature: Divides the similarities.
        denominator: What each positive is compared with. "printed" (Eq. 8): rows of other classes alone, so that the
            term can be negative; "supcon": all rows but the own; "infonce": rows of other classes and that positive.
        reduction: "valid": mean over the anchors that have a positive (and, where the denominator is "printed", a
            negative); "all": others count as zero in the mean.
        first_row: Which row of `t` belongs to the first of `s`.

    Returns:
        A scalar with a graph, zero where no anchor is valid. With `s` one rank's share of the joined batch, its share
        of the joined mean times joined / batch rows: what a loop that weighs ranks by their rows expects.
    """
    return _category(_similarities(s, t, temperature), labels, first_row, denominator, reduction)


def _similarities(anchors: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Products over temperature, (anchors, keys), in full precision; divides the anchors, the smaller side."""
    anchors = full_precision(anchors) / temperature
    with torch.autocast(anchors.device.type, enabled=False):
        return anchors @ keys.detach().to(anchors.dtype).T


def _own(near: Tensor, first_row: int) -> Tensor:
    """Where each anchor meets its own key, boolean, shape of `near` (batch, joined)."""
    anchors = torch.arange(first_row, first_row + near.shape[0], device=near.device)
    return anchors[:, None] == torch.arange(near.shape[1], device=near.device)


def _sample(near: Tensor, first_row: int, masked: Tensor | None) -> Tensor:
    """`sample_loss` of similarities (batch, joined)."""
    positive = near.diagonal(first_row)
    if masked is not None:
        near = near.masked_fill(masked & ~_own(near, first_row), -torch.inf)
    return (near.logsumexp(dim=1) - positive).mean()


def _category(near: Tensor, labels: Tensor, first_row: int, denominator: str, reduction: str) -> Tensor:
    """`category_loss` of similarities (batch, joined)."""
    rows, joined = near.shape
    share = slice(first_row, first_row + rows)
    own = _own(near, first_row)
    same = labels[share, None] == labels
    positives = same & ~own
    candidates = ~own if denominator == "supcon" else ~same

    # anchors without candidates give zero below; until then they keep all, as logsumexp of nothing has no gradient
    compared = candidates.any(dim=1, keepdim=True)
    against = near.masked_fill(~candidates & compared, -torch.inf).logsumexp(dim=1, keepdim=True)
    pairs = -F.logsigmoid(near - against) if denominator == "infonce" else against - near
    per_anchor = (pairs * positives).sum(dim=1) / positives.sum(dim=1).clamp(min=1)
    mean = torch.where(compared[:, 0], per_anchor, 0.0).sum() / rows
    if reduction == "all":
        return mean
    valid = ((labels[:, None] == labels).sum(dim=1) > 1).sum()  # of all ranks' anchors
    return mean * joined / valid.clamp(min=1)


class MCLD(Distiller):
    """Instance-, sample- and category-wise contrast of the student's logits with the teacher's.

    The paper's (v1): student rows as anchors and teacher rows as keys, one temperature of .2, the three terms
    (Eqs. 2-8), their weights 1, 1/2, 1/2 (Eq. 9), a queue of past teacher rows (Algorithm 1), positives of the category
    term that are not the sample itself, its denominator without the positives (Eq. 8, "printed"), no cross-entropy
    but for the weakest teachers (Table 6), no warm-up, negatives of the anchor's own class.

    Ours, where the paper is silent or contradicts itself:

    - `normalize`: rows are L2-normalised. It prints plain products, but with these at temperature .2 training diverges,
      and MoCo, whose layout it follows, prints them too and normalises in its code.
    - `queue_length`: "all training samples" read as the training set rounded down to whole batches, at most 65,536.
    - `queue_init`: empty, with a count of what is filled, so that no random row is a negative.
    - Queue entries are teacher rows, enqueued after the loss: Algorithm 1's comments swap the two networks.
    - `exclude_self`: the queue's older copy of the anchor's own sample is no negative ("excluding x_i" in the text).
    - `category_reduction`: anchors without a partner are left out of the mean; counting them would shrink the term by
      a share that depends on the batch (about half at 64 images of 100 classes).
    - One class alone in the batch: no anchor has a denominator as printed, and the term is zero.
    - `target_mask` and `category_warmup_epochs`: off. A later version (v2) names a target mask and a warm-up of the
      category term; "same_class" leaves negatives of the anchor's class out of queue and batch, "target_logit" removes
      the coordinate of the anchor's label from both rows before they are normalised.
    - Several ranks contrast with all ranks' rows, so that a step equals that of one process on the joined batch.
    - Similarities are float32 under mixed precision, also where `queue_dtype` keeps the queue in bfloat16, which takes
      half the memory and rounds its entries to 8 significant bits.

    A weight of 0 switches its term off: neither computed nor logged.

    What we measured: CIFAR-100, resnet56 -> resnet20, public teacher weights (72.6 %), seed 0, last top-1. After three
    epochs without cross-entropy: L2-normalised 37.5, centred first 36.0, plain products at temperature 200 11.7 and at
    the paper's .2 1.0 (chance; the loss reaches 1e13 in the first epoch); the instance term alone 35.1, sample 38.8,
    category 12.2; `experiment=mcld_v2` 35.9. After five epochs: 46.3 without and 48.8 with cross-entropy, beside 40.1
    of cross-entropy alone and 42.3 of KD. One seed and a fraction of the paper's 240 epochs: enough to rule the plain
    products out and to see the category term clearly last, as in Table 7; not to rank the others or the two L2 forms.

    Attributes:
        queue: Past teacher rows as `_key_rows` gives them, shape (K, classes); zeros where not filled yet.
        queue_index: Sample of each entry, shape (K,); -1 for none.
        position: Where the next row goes, 0-d.
        count: Entries filled, 0-d.
        sample_labels: Class of each training sample, shape (num_samples,).
    """

    queue: Tensor
    queue_index: Tensor
    position: Tensor
    count: Tensor
    sample_labels: Tensor

    def __init__(
        self,
        spec: Spec,
        *,
        temperature: float,
        normalize: str,
        queue_length: int | None,
        queue_init: str,
        queue_dtype: str,
        exclude_self: bool,
        target_mask: str,
        category_reduction: str,
        category_denominator: str,
        category_warmup_epochs: float,
        ce_weight: float,
        instance_weight: float,
        sample_weight: float,
        category_weight: float,
    ) -> None:
        """Check the options and make the queue.

        Raises:
            UserError: An option has an unknown value, the queue has no entry or does not fit into memory, or all
                weights are 0.
        """
        super().__init__()
        self.temperature = temperature
        self.normalize = _choose("normalize", normalize)
        self.exclude_self = exclude_self
        self.target_mask = _choose("target_mask", target_mask)
        self.category_reduction = _choose("category_reduction", category_reduction)
        self.category_denominator = _choose("category_denominator", category_denominator)
        self.category_warmup_epochs = category_warmup_epochs
        self.ce_weight = ce_weight
        self.instance_weight = instance_weight
        self.sample_weight = sample_weight
        self.category_weight = category_weight
        if not any((ce_weight, instance_weight, sample_weight, category_weight)):
            raise UserError(
                "MCLD has nothing to learn from: of ce_weight, instance_weight, sample_weight and category_weight "
                "at least one must not be 0"
            )

        length = _length(queue_length, spec) if instance_weight else 0  # only the instance-wise term reads it
        filled = length if _choose("queue_init", queue_init) == "gaussian" else 0
        dtype: torch.dtype = getattr(torch, _choose("queue_dtype", queue_dtype))
        _check_memory(length, spec.num_classes, dtype)
        queue = torch.zeros(length, spec.num_classes, dtype=dtype)
        if filled:
            # a seed of its own: all ranks must start with the same queue
            rows = torch.randn(length, spec.num_classes, generator=torch.Generator().manual_seed(0))
            queue = self._key_rows(F.normalize(rows)).to(dtype)
        self.register_buffer("queue", queue)
        self.register_buffer("queue_index", torch.full((length,), -1))
        self.register_buffer("position", torch.tensor(0))
        self.register_buffer("count", torch.tensor(filled))
        self.register_buffer("sample_labels", spec.labels, persistent=False)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce", "instance", "sample" and "category", as far as their weights are not 0."""
        labels, counts = step.batch.labels, step.batch.rows
        first_row = memory.first_row(counts)
        joined_labels = memory.gather(labels, counts)
        keys = memory.gather(self._key_rows(step.teacher.logits), counts)
        anchors = self._anchors(step.student.logits, labels)
        lengths = self._lengths(anchors, labels)
        near = _similarities(anchors, keys, self.temperature)
        if lengths is not None:
            near = near / lengths(keys)

        terms = {}
        if self.ce_weight:
            terms["ce"] = self.ce_weight * F.cross_entropy(full_precision(step.student.logits), labels)
        if self.instance_weight:
            instance = infonce(
                anchors / self.temperature,
                near.diagonal(first_row),
                self.queue,
                masked=lambda part: self._no_negatives(step.batch, part),
                lengths=lengths,
            )
            terms["instance"] = self.instance_weight * instance.mean()
        if self.sample_weight:
            masked = labels[:, None] == joined_labels if self.target_mask == "same_class" else None
            terms["sample"] = self.sample_weight * _sample(near, first_row, masked)
        if self.category_weight:
            weight = self.category_weight * ramp(step.epoch, self.category_warmup_epochs)
            category = _category(near, joined_labels, first_row, self.category_denominator, self.category_reduction)
            terms["category"] = weight * category
        return terms

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Enqueue the teacher's rows of all ranks, first in, first out."""
        if not self.instance_weight:
            return
        rows = memory.gather(self._key_rows(step.teacher.logits), step.batch.rows)
        index = memory.gather(step.batch.index, step.batch.rows)
        length = len(self.queue)
        slots = (self.position + torch.arange(len(rows), device=rows.device)) % length
        # of a batch longer than the queue only the end stays, which also keeps the slots distinct
        self.queue.index_copy_(0, slots[-length:], rows[-length:].to(self.queue.dtype))
        self.queue_index.index_copy_(0, slots[-length:], index[-length:])
        self.position.add_(len(rows)).remainder_(length)
        self.count.add_(len(rows)).clamp_(max=length)

    def _no_negatives(self, batch: Batch, part: slice) -> Tensor:
        """Which of a part of the queue are no negatives, boolean, broadcast to (batch, part); without waiting."""
        index = self.queue_index[part]
        masked = torch.arange(part.start, part.stop, device=index.device) >= self.count
        if self.exclude_self:
            masked = masked | (index == batch.index[:, None])
        if self.target_mask == "same_class":
            masked = masked | ((index >= 0) & (self.sample_labels[index] == batch.labels[:, None]))
        return masked

    def _normalized(self, rows: Tensor) -> Tensor:
        if self.normalize == "none":
            return rows
        return F.normalize(rows - rows.mean(dim=1, keepdim=True) if self.normalize == "center_l2" else rows)

    def _key_rows(self, logits: Tensor) -> Tensor:
        """Teacher rows as they are compared, gathered and stored, shape (batch, classes).

        Where the anchor's label decides which coordinate of a key counts, its norm is not known yet.
        """
        rows = full_precision(logits)
        if self.target_mask != "target_logit":
            return self._normalized(rows)
        return rows - rows.mean(dim=1, keepdim=True) if self.normalize == "center_l2" else rows

    def _anchors(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Normalised student rows; with target_logit their label's coordinate is taken out first, and stays 0."""
        rows = full_precision(logits)
        if self.target_mask != "target_logit":
            return self._normalized(rows)
        target = torch.zeros_like(rows, dtype=torch.bool).scatter(1, labels[:, None], True)
        rows = rows.masked_fill(target, 0.0)
        if self.normalize == "center_l2":
            mean = rows.sum(dim=1, keepdim=True) / (rows.shape[1] - 1)
            rows = (rows - mean).masked_fill(target, 0.0)
        return rows if self.normalize == "none" else F.normalize(rows)

    def _lengths(self, anchors: Tensor, labels: Tensor) -> Lengths | None:
        """How long keys are, (batch, keys), where the label of an anchor decides which coordinate counts.

        With target_logit, anchors are 0 at their label y (and sum to 0 if centred), so that products already leave out
        the keys' coordinate y and mean; what is left is the key's norm without y. For centred keys the mean of the
        others is -k_y / (classes - 1), which takes k_y² / (classes - 1) off the sum of their squares.
        """
        if self.target_mask != "target_logit" or self.normalize == "none":
            return None
        centred = self.normalize == "center_l2"
        weights = torch.ones_like(anchors)
        weights.scatter_(1, labels[:, None], -1 / (anchors.shape[1] - 1) if centred else 0.0)

        def lengths(keys: Tensor) -> Tensor:
            squares = keys.square()
            norms = _similarities(weights, squares, 1.0)
            if centred:  # what is left of a difference below its rounding error means nothing
                norms = torch.maximum(norms, torch.finfo(norms.dtype).eps * squares.sum(dim=1))
            return norms.clamp(min=1e-24).sqrt()

        return lengths


def _choose(option: str, value: str) -> str:
    if value not in CHOICES[option]:
        raise UserError(f"{option}={value!r} is no option of MCLD: choose one of {', '.join(CHOICES[option])}")
    return value


def _length(asked: int | None, spec: Spec) -> int:
    """Entries of the queue: as asked, or whole batches of the training set, which may be smaller than one."""
    if asked is None:
        samples, batch = spec.num_samples, spec.batch_size
        return min(samples // batch * batch or samples, MAX_QUEUE)
    if asked < 1:
        raise UserError(f"queue_length={asked} leaves no entry: give at least 1, or null for the training set's size")
    return asked


def _check_memory(entries: int, classes: int, dtype: torch.dtype) -> None:
    """Refuse a queue that is larger than the memory of the machine, or of its GPUs where it has any."""
    row, there = classes * dtype.itemsize, total_memory()
    if there is not None and entries * row > there:
        smaller = " or queue_dtype=bfloat16, which halves it" if dtype.itemsize > 2 else ""
        raise UserError(
            f"a queue of {entries:,} x {classes:,} numbers takes {entries * row / 1e9:,.1f} GB, more than the "
            f"{there / 1e9:,.1f} GB there are: set queue_length to less than {there // row:,}{smaller}"
        )
