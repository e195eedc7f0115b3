"""Whether a file answers as the network it was made from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.export.formats import Answer


class Reference:
    """The logits of a network, by batch size.

    Args:
        network: Answers images, shape (rows, 3, height, width), with logits, shape (rows, classes).
        images: What both are asked about.
        batches: Batch sizes to ask in; the last batch of each may be smaller.
    """

    def __init__(self, network: Answer, images: Tensor, *, batches: Sequence[int]) -> None:
        self.images = images
        self.logits = {size: _asked(network, images, size) for size in batches}
        self.largest = max(logits.abs().max().item() for logits in self.logits.values())

    def compared(self, answer: Answer, *, what: str, tolerance: float) -> list[dict[str, Any]]:
        """How far another's logits are from these.

        Args:
            answer: The other.
            what: What it is to the user, for the message.
            tolerance: The largest difference allowed, as a part of the largest logit.

        Returns:
            For each batch size: `batch`, `difference` (the largest, of logits), `equal_predictions` in percent.

        Raises:
            UserError: If a difference is larger, or not a number.
        """
        found = []
        for size, expected in self.logits.items():
            logits = _asked(answer, self.images, size)
            difference = (logits - expected).abs().max().item()
            if not difference <= tolerance * self.largest:
                raise UserError(
                    f"{what} answers otherwise than PyTorch, by {difference:.2g} in batches of {size}, where"
                    f" check.tolerance={tolerance:g} of the largest logit, {self.largest:.2g}, is allowed: nothing was"
                    " written."
                )
            equal = 100 * (logits.argmax(dim=1) == expected.argmax(dim=1)).double().mean().item()
            found.append({"batch": size, "difference": difference, "equal_predictions": equal})
        return found


@torch.no_grad()
def _asked(answer: Answer, images: Tensor, size: int) -> Tensor:
    return torch.cat([answer(batch) for batch in torch.split(images, size)])
