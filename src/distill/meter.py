"""Means over the training epoch, kept on the device: reading them is the only synchronisation."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Meter:
    """Sums of every loss term and of correct answers, over the rows of this rank."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start an epoch."""
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.rows = 0
        self.batches = 0

    @torch.no_grad()
    def update(self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Take in one batch: terms are means over its rows."""
        values = torch.stack([term.detach().float() for term in terms.values()]) * len(labels)
        correct = (logits.argmax(dim=1) == labels).sum().float()
        new = torch.cat([values, correct[None]]).double()
        self.names = list(terms)
        self.sums = new if self.sums is None else self.sums.to(new.device) + new
        self.rows += len(labels)
        self.batches += 1

    def not_finite(self) -> list[str]:
        """Names of the terms that have been NaN or infinite in this epoch."""
        if self.sums is None:
            return []
        bad = (~self.sums[:-1].isfinite()).tolist()
        return [name for name, is_bad in zip(self.names, bad, strict=True) if is_bad]

    def compute(self) -> dict[str, float]:
        """Means over the rows of all ranks: every term, their sum as "loss", and "top1" in percent."""
        return self._means(self._over_ranks())

    def compute_here(self) -> dict[str, float]:
        """The same over the rows of this rank alone: no rank waits for another."""
        return self._means(self._own())

    def _means(self, total: Tensor | None) -> dict[str, float]:
        if total is None:
            return {}
        *terms, correct, rows = total.tolist()
        means = {name: value / rows for name, value in zip(self.names, terms, strict=True)}
        return {"loss": sum(means.values()), **means, "top1": 100 * correct / rows}

    def _own(self) -> Tensor | None:
        return None if self.sums is None else torch.cat([self.sums, self.sums.new_tensor([self.rows])])

    def _over_ranks(self) -> Tensor | None:
        total = self._own()
        if total is not None and dist.is_initialized():
            dist.all_reduce(total)
        return total

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint, summed over ranks."""
        total = self._over_ranks()
        return {
            "names": self.names,
            "sums": None if total is None else total.tolist(),
            "batches": self.batches,
        }

    def load(self, state: dict[str, Any], *, keep: bool) -> None:
        """Go on from `state`; a rank that does not keep the sums counts from zero beside one that does."""
        self.names, self.batches = state["names"], state["batches"]
        if state["sums"] is None:
            self.sums, self.rows = None, 0
            return
        *sums, rows = state["sums"]
        self.sums = torch.tensor(sums, dtype=torch.float64) * keep
        self.rows = int(rows) * keep
