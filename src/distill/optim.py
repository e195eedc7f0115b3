"""Learning-rate schedules, as factors of the base rate over fractional epochs."""

from collections.abc import Sequence


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
        warm = min(1.0, (epoch + 1e-3) / self.warmup_epochs) if self.warmup_epochs > 0 else 1.0
        return float(warm * self.gamma ** sum(epoch >= m for m in self.milestones))
