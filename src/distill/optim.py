"""Learning-rate schedules, as factors of the base rate over fractional epochs."""

import math
from collections.abc import Sequence

from distill.errors import UserError


def warm_up(epoch: float, epochs: float) -> float:
    """Factor that rises linearly to 1 over so many epochs; its first is a little above 0, so that no step is lost."""
    return min(1.0, (epoch + 1e-3) / epochs) if epochs > 0 else 1.0


class MultiStep:
    """Multiply the rate by `gamma` at each milestone, after an optional linear warm-up.

    Stepped once per optimizer step, so that milestones of a shortened recipe may fall inside an epoch; for whole
    numbers it equals `torch.optim.lr_scheduler.MultiStepLR` stepped per epoch.
    """

    def __init__(self, *, milestones: Sequence[float], gamma: float, warmup_epochs: float) -> None:
        self.milestones = sorted(float(m) for m in milestones)
        self.gamma = gamma
        self.warmup_epochs = warmup_epochs

    def __call__(self, epoch: float) -> float:
        """Factor at a moment counted in epochs from 0."""
        return float(warm_up(epoch, self.warmup_epochs) * self.gamma ** sum(epoch >= m for m in self.milestones))


class Cosine:
    """Half a cosine from the full rate to a floor, without restarts (Loshchilov and Hutter, 2017, eq. 5).

    An optional linear warm-up comes before it (Goyal et al., 2017, section 2.2): the cosine begins where that ends.

    Args:
        epochs: When the floor is reached, counted from the first step; later epochs stay there.
        warmup_epochs: Length of the warm-up.
        floor: The last factor.

    Raises:
        UserError: If the warm-up leaves no epochs to the cosine, or the floor lies outside 0 to 1.
    """

    def __init__(self, *, epochs: float, warmup_epochs: float, floor: float) -> None:
        if not 0 <= warmup_epochs < epochs:
            raise UserError(
                f"recipe.schedule.warmup_epochs={warmup_epochs} must be at least 0 and less than its epochs={epochs}."
            )
        if not 0 <= floor <= 1:
            raise UserError(f"recipe.schedule.floor={floor} must lie between 0 and 1.")
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.floor = floor

    def __call__(self, epoch: float) -> float:
        """Factor at a moment counted in epochs from 0."""
        gone = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        cosine = math.cos(math.pi * min(max(gone, 0.0), 1.0))
        return warm_up(epoch, self.warmup_epochs) * (self.floor + (1 - self.floor) * (1 + cosine) / 2)
