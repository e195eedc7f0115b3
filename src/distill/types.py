"""What flows through the system: batches, answers of networks, steps, and the shapes known beforehand."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

# what a network may show beside its logits
Part = Literal["stages", "preacts", "final", "pooled"]


@dataclass(frozen=True)
class Batch:
    """One rank's rows of a batch of images.

    Attributes:
        images: Augmented images in [0, 1], not normalised, shape (batch, 3, height, width).
        labels: Class of each image, shape (batch,), int64.
        index: Position of each sample in its data set, shape (batch,), int64.
        view: What names the augmented view, (dy, dx, flip), shape (batch, 3), where the set of views is finite.
        names: The same as one number per row, index * number of views + number of the view, shape (batch,), int64.
            Always on the CPU: whoever looks an answer up needs not wait for the device.
        strong: A second, strongly augmented view for methods that ask for one; shaped as `images`.
        rows: Rows that every rank holds of the joined batch, in rank order; empty in a single process.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    view: Tensor | None = None
    names: Tensor | None = None
    strong: Tensor | None = None
    rows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in tensors.items() if isinstance(v, Tensor) and k != "names"
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Output:
    """What a network answers to a batch of images.

    Attributes:
        logits: Class scores in float32, shape (batch, classes).
        stages: Feature maps, stem first, each (batch, channels, height, width); () for logit-only networks.
        preacts: The maps of `stages[1:]` before their last ReLU; () where the network has none.
        final: The map that the classifier pools, (batch, channels, height, width).
        pooled: What the classifier reads, (batch, features).
        strong: Class scores of the batch's strong view, shaped as `logits`; only methods of two views fill it, in
            `observe`. All else is the answer to the weak view.
    """

    logits: Tensor
    stages: tuple[Tensor, ...] = ()
    preacts: tuple[Tensor, ...] = ()
    final: Tensor | None = None
    pooled: Tensor | None = None
    strong: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """What a method may know of one training step.

    Attributes:
        batch: The images and labels.
        student: The student's answer, with a graph.
        teacher: The teacher's answer, without one; its logits have no columns where there is no teacher.
        epoch: Counts from 1: the published warm-ups divide by it.
        step: Optimizer steps done before this one.
        scratch: What a method's `forward` hands to its own `update`.
    """

    batch: Batch
    student: Output
    teacher: Output
    epoch: int
    step: int
    scratch: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Shapes:
    """Sizes of one network's `Output`, without the batch dimension."""

    logits: int
    stages: tuple[tuple[int, int, int], ...] = ()
    preacts: tuple[tuple[int, int, int], ...] = ()
    final: tuple[int, int, int] | None = None
    pooled: int | None = None

    def show(self, part: Part) -> bool:
        """Whether the network shows a part of `Output`; of "stages" a stem and at least one stage."""
        found: Any = getattr(self, part)
        return len(found) > 1 if part == "stages" else bool(found)


@dataclass(frozen=True)
class Spec:
    """What a method is built from.

    Attributes:
        student: Shapes of the student's answer.
        teacher: Shapes of the teacher's answer; None without a teacher.
        num_classes: Classes of the data set.
        num_samples: Images in the training set.
        labels: Their classes, shape (num_samples,), int64.
        batch_size: The global batch.
    """

    student: Shapes
    teacher: Shapes | None
    num_classes: int
    num_samples: int
    labels: Tensor
    batch_size: int
