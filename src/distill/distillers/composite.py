"""What methods made of other methods share."""

from collections.abc import Mapping
from typing import cast

from torch import nn

from distill.distillers.contract import Distiller
from distill.errors import UserError
from distill.models.network import Network
from distill.types import Batch, Output


class Composite(Distiller):
    """A method made of methods: all that its parts ask of the networks and of the data is handed through.

    What is left to a subclass is the arithmetic: `forward`, and `update` with the steps that its parts saw. Its
    constructor says by its annotations which arguments are methods (`host: Distiller`, or
    `terms: Mapping[str, Distiller]`); they arrive built from the same `Spec`.

    Args:
        parts: The methods by name, under which their parameters and buffers are kept.

    Raises:
        UserError: If two of them observe the networks, or deploy the student, each in a way of its own.
    """

    def __init__(self, parts: Mapping[str, Distiller]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        every = parts.values()
        self.needs = "features" if any(part.needs == "features" for part in every) else "logits"
        self.views = 2 if any(part.views == 2 for part in every) else 1
        self.needs_teacher = any(part.needs_teacher for part in every)
        # names, lest a part be registered twice
        self._observes, self._deploys = self._single("observe"), self._single("deploy")

    def part(self, name: str) -> Distiller:
        """One of the methods."""
        return cast(Distiller, self.parts[name])

    def prepare(self, student: Network, teacher: Network | None) -> None:
        """Each part prepares the networks, in order."""
        for name in self.parts:
            self.part(name).prepare(student, teacher)

    def observe(self, student: Network, teacher: Network | None, batch: Batch) -> tuple[Output, Output]:
        """As the part does that has a way of its own, if any; the others are given the same answers."""
        if self._observes is None:
            return super().observe(student, teacher, batch)
        return self.part(self._observes).observe(student, teacher, batch)

    def deploy(self, student: Network, teacher: Network | None) -> nn.Module:
        """As the part does that deploys more than the student, if any."""
        return student if self._deploys is None else self.part(self._deploys).deploy(student, teacher)

    def _single(self, what: str) -> str | None:
        names = [name for name in self.parts if _own_way(self.part(name), what)]
        if len(names) > 1:
            raise UserError(
                f"{' and '.join(names)} cannot be trained together, for each of them has a way of its own to {what} the"
                " networks: keep one of them."
            )
        return names[0] if names else None


def _own_way(part: Distiller, what: str) -> bool:
    """Whether a method does `what` otherwise than the contract does; a composite does what its parts do."""
    if isinstance(part, Composite):
        return getattr(part, f"_{what}s") is not None
    return getattr(type(part), what) is not getattr(Distiller, what)
