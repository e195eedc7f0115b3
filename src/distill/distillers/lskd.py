"""Logit standardisation (LSKD; Sun et al., CVPR 2024, arXiv 2403.01427): a student need not match its teacher's scale.

Before any logit-based method compares them, the logits of both networks are standardised row by row.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from distill.distillers.composite import Composite
from distill.distillers.contract import Distiller
from distill.distillers.kd import full_precision
from distill.errors import UserError
from distill.types import Output, Spec, Step


def standardize(logits: Tensor) -> Tensor:
    """Each row less its mean, over its standard deviation (Z-score, Algorithm 1 of the paper).

    Args:
        logits: Shape (batch, classes); gradients flow through mean and deviation too.

    Returns:
        Same shape, in float32 (float64 where it came so): rows of mean 0 and deviation 1, the deviation being the
        unbiased one over classes - 1. A row of equal logits gives zeros.
    """
    deviation, mean = torch.std_mean(full_precision(logits), dim=1, keepdim=True)
    return (full_precision(logits) - mean) / (1e-7 + deviation)


class LSKD(Composite):
    """A host method whose terms read standardised logits, all but some that read the logits as they are.

    The host is computed on both, and each of its terms taken from where it belongs, so that any method can be host:
    KD, DKD, RLD, CTKD, MLKD, a third party's. Computing its loss twice costs little beside the networks. Temperature
    and weights are the host's own: the paper's temperature replaces the host's, and its weight of about 9 replaces
    the `kd_weight` of KD, CTKD and MLKD and multiplies the alpha and beta of DKD and RLD.

    The published temperatures and weights were tuned for each pair on the test set, as an author confirms
    (sunshangquan/logit-standardization-KD, issue 12), and the published accuracy is that of the best epoch. Over MLKD
    the public code standardises within the divergence alone, while MLKD's class and batch terms read raw logits: all
    published numbers are of that sum, and `raw_terms` says so.

    Args:
        spec: Not read.
        host: The method.
        raw_terms: Its terms that read the logits as they are: "ce", the task's, and more where the host needs it.
    """

    def __init__(self, spec: Spec, *, host: Distiller, raw_terms: Sequence[str]) -> None:
        super().__init__({"host": host})
        self.raw_terms = tuple(raw_terms)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms of the host, under their names.

        Raises:
            UserError: If the host has no such term as `raw_terms` names; "ce" may be absent.
        """
        host = self.part("host")
        raw = host(replace(step, scratch={}))
        terms: dict[str, Tensor] = host(_standardized(step))
        if strange := [name for name in self.raw_terms if name not in raw and name != "ce"]:
            raise UserError(
                f"raw_terms={list(self.raw_terms)}: the host has no term {strange[0]}, but {', '.join(raw)}."
            )
        return {name: raw[name] if name in self.raw_terms else term for name, term in terms.items()}

    def report(self, epoch: int) -> dict[str, float | Tensor]:
        """The host's."""
        return self.part("host").report(epoch)

    def update(self, step: Step) -> None:
        """The host's, with the step as it saw it."""
        self.part("host").update(_standardized(step))


def _standardized(step: Step) -> Step:
    """The same step, its scratch included, with standardised logits."""

    def output(answer: Output) -> Output:
        strong = None if answer.strong is None else standardize(answer.strong)
        return replace(answer, logits=standardize(answer.logits), strong=strong)

    return replace(step, student=output(step.student), teacher=output(step.teacher))
