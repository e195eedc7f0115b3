"""Several methods at once: the student minimises the sum of their terms."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from distill.distillers.composite import Composite
from distill.distillers.contract import Distiller
from distill.errors import UserError
from distill.types import Spec, Step


class Sum(Composite):
    """The terms of all parts, each weighed as its own method weighs it: there is no second set of weights.

    A part's term is called `<part>.<term>`; the task terms of all parts add up to the one "ce", so give a `ce_weight`
    other than 0 to one of them alone. CRD + KD of the CRD paper is crd (ce_weight 1, its own weight .8) and kd
    (ce_weight 0, kd_weight 1, temperature 4).

    Args:
        spec: Not read.
        terms: The methods, by name.

    Raises:
        UserError: If there is none, or two look at the networks in ways that exclude each other.
    """

    def __init__(self, spec: Spec, *, terms: Mapping[str, Distiller]) -> None:
        if not terms:
            raise UserError(
                "a sum needs at least one method: add it with +distiller@distiller.terms.kd=kd, for instance."
            )
        super().__init__(terms)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "ce" and `<part>.<term>`."""
        task: Tensor | None = None
        terms: dict[str, Tensor] = {}
        for name in self.parts:
            own: dict[str, Tensor] = {}
            for key, term in self.part(name)(replace(step, scratch=own)).items():
                if key == "ce":
                    task = term if task is None else task + term
                else:
                    terms[f"{name}.{key}"] = term
            step.scratch.update({f"{name}.{key}": value for key, value in own.items()})
        return terms if task is None else {"ce": task, **terms}

    def report(self, epoch: int) -> dict[str, float | Tensor]:
        """Each part's, called `<part>.<name>`."""
        found = ((name, self.part(name).report(epoch)) for name in self.parts)
        return {f"{name}.{key}": value for name, values in found for key, value in values.items()}

    def update(self, step: Step) -> None:
        """Each part's, with its own scratch."""
        for name in self.parts:
            mine = f"{name}."
            own = {key.removeprefix(mine): value for key, value in step.scratch.items() if key.startswith(mine)}
            self.part(name).update(replace(step, scratch=own))
