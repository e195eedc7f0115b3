"""What methods on features share: what they ask of the networks, which stages meet, and how sizes are matched."""

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import distillers
from distill.distillers.composite import Composite
from distill.distillers.contract import Distiller
from distill.errors import UserError
from distill.types import Output, Shapes, Spec

Part = Literal["stages", "preacts", "final", "pooled"]
SAID: dict[Part, str] = {
    "stages": "the feature maps of stages",
    "preacts": "feature maps before their last ReLU",
    "final": "the feature map that is pooled",
    "pooled": "pooled features",
}

# numbers of the stages that meet, the student's first; 0 is the stem
Pairs = tuple[tuple[int, int], ...]


def require(spec: Spec, method: str, *parts: Part) -> tuple[Shapes, Shapes]:
    """The shapes of both networks, if they show what a method reads.

    Args:
        spec: As the method's constructor has it.
        method: Its name, for the message.
        parts: Fields of `Output` that it reads; "stages" means a stem and at least one stage.

    Returns:
        The student's shapes and the teacher's.

    Raises:
        UserError: If a network lacks one; lists the methods that would work.
    """
    assert spec.teacher is not None, "a method that needs a teacher is not built without one"
    for who, shapes in (("student", spec.student), ("teacher", spec.teacher)):
        for part in parts:
            found = getattr(shapes, part)
            if not found or (part == "stages" and len(found) < 2):
                raise UserError(
                    f"distiller {method} reads {SAID[part]}, which this {who} does not show: choose another {who}, or"
                    f" a distiller that reads logits alone ({', '.join(of_logits())})."
                )
    return spec.student, spec.teacher


def of_logits() -> list[str]:
    """Names of the methods that read logits alone, as their files are called; compositions are left out."""
    modules = [f"{distillers.__name__}.{found.name}" for found in pkgutil.iter_modules(distillers.__path__)]
    return [
        name.rpartition(".")[2]
        for name in modules
        for kind in vars(importlib.import_module(name)).values()
        if isinstance(kind, type) and kind.__module__ == name and issubclass(kind, Distiller) and _of_logits(kind)
    ]


def _of_logits(kind: type[Distiller]) -> bool:
    composed = kind is Distiller or issubclass(kind, Composite)
    return not composed and kind.needs_teacher and kind.needs == "logits"


def stage_pairs(student: Shapes, teacher: Shapes) -> Pairs:
    """Which stage of the student meets which of the teacher, the stem left out.

    Networks of equally many stages meet stage by stage, as published. For others no alignment is published: public
    code pairs from the front and drops the deepest stages of the longer network. Here every stage of the shorter
    network meets the first stage of the longer that ends no earlier in relative depth, so that the last meet: of
    three and four stages 1 and 2, 2 and 3, 3 and 4.

    Returns:
        Places in `Output.stages` (in `preacts`: one less), the student's first, shallowest first.
    """
    counts = len(student.stages) - 1, len(teacher.stages) - 1
    shorter = min(counts)
    return tuple((-(-i * counts[0] // shorter), -(-i * counts[1] // shorter)) for i in range(1, shorter + 1))


def paired(student: Output, teacher: Output, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """The maps of the stages that meet, the student's first."""
    return [(student.stages[i], teacher.stages[j]) for i, j in pairs]


def shrink(x: Tensor, size: Sequence[int]) -> Tensor:
    """Means over the positions that share one of a smaller map.

    Args:
        x: Shape (batch, channels, height, width).
        size: Height and width of the result; need not divide those of `x`.

    Returns:
        Shape (batch, channels, *size); `x` itself where it has that size.
    """
    height, width = size
    return x if tuple(x.shape[-2:]) == (height, width) else F.adaptive_avg_pool2d(x, (height, width))


def at_one_size(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and the smaller width, by `shrink`: what AT's public code does.

    Args:
        s: Shape (batch, channels, height, width).
        t: Likewise; each of the three may be another.
    """
    size = min(s.shape[-2], t.shape[-2]), min(s.shape[-1], t.shape[-1])
    return shrink(s, size), shrink(t, size)


def unit(x: Tensor, *, dim: int, shortest: float = 1e-12) -> Tensor:
    """Vectors at length one; those that are not longer than `shortest` become zero, without a gradient.

    `torch.nn.functional.normalize` gives a zero vector a gradient of 1e12 instead.

    Args:
        x: Any shape.
        dim: Along which the vectors lie.
        shortest: Length up to which a vector has no direction.
    """
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    long = length > shortest
    return torch.where(long, x / torch.where(long, length, 1.0), 0.0)
