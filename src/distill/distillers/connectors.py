"""What methods on features share: what they ask of the networks, which stages meet, and how sizes are matched."""

import importlib
import pkgutil
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import distillers
from distill.distillers.composite import Composite
from distill.distillers.contract import Distiller
from distill.errors import UserError
from distill.types import Output, Part, Shapes, Spec

SAID: dict[Part, str] = {
    "stages": "the feature maps of stages",
    "preacts": "feature maps before their last ReLU",
    "final": "the feature map that is pooled",
    "pooled": "pooled features",
}

# numbers of the stages that meet, the student's first; 0 is the stem
Pairs = tuple[tuple[int, int], ...]


def require(spec: Spec, method: type[Distiller]) -> tuple[Shapes, Shapes]:
    """The shapes of both networks, if they show what a method reads.

    Args:
        spec: As the method's constructor has it.
        method: Its class, which says what it reads; see `Distiller.lacks`.

    Returns:
        The student's shapes and the teacher's.

    Raises:
        UserError: If a network lacks something; lists the methods that would work with these two.
    """
    assert spec.teacher is not None, "a method that needs a teacher is not built without one"
    if lacking := method.lacks(spec.student, spec.teacher):
        who, part = lacking
        raise UserError(
            f"distiller {method.__name__} reads {SAID[part]}, which this {who} does not show: choose another {who}, or"
            f" a distiller that works with these networks ({', '.join(would_work(spec.student, spec.teacher))})."
        )
    return spec.student, spec.teacher


def would_work(student: Shapes, teacher: Shapes) -> list[str]:
    """Names of the methods that find what they read, as their files are called; compositions are left out."""
    modules = [f"{distillers.__name__}.{found.name}" for found in pkgutil.iter_modules(distillers.__path__)]
    return [
        name.rpartition(".")[2]
        for name in modules
        for kind in vars(importlib.import_module(name)).values()
        if isinstance(kind, type) and kind.__module__ == name and issubclass(kind, Distiller) and _is_one_alone(kind)
        if kind.lacks(student, teacher) is None
    ]


def _is_one_alone(kind: type[Distiller]) -> bool:
    return kind.needs_teacher and kind is not Distiller and not issubclass(kind, Composite)


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
