"""Learning-rate schedules, as factors of the base rate over fractional epochs, and what weight decay leaves alone."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

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
        _check_warm_up(warmup_epochs, epochs)
        _check_factor("floor", floor)
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.floor = floor

    def __call__(self, epoch: float) -> float:
        """Factor at a moment counted in epochs from 0."""
        gone = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        cosine = math.cos(math.pi * min(max(gone, 0.0), 1.0))
        return warm_up(epoch, self.warmup_epochs) * (self.floor + (1 - self.floor) * (1 + cosine) / 2)


class TimmCosine:
    """The cosine of timm's scheduler, as DeiT's code uses it (Touvron et al., 2021, arXiv 2012.12877).

    The cosine runs from the first step on, and the warm-up takes its place until it ends; there the rate falls a
    little, to where the cosine has got by then. timm steps it once an epoch; this one also moves between whole epochs.

    Args:
        epochs: When the floor is reached, counted from the first step; later epochs stay there.
        warmup_epochs: Length of the linear warm-up.
        warmup_from: Its first factor.
        floor: The last factor.

    Raises:
        UserError: If the warm-up leaves no epochs to the cosine, or a factor lies outside 0 to 1.
    """

    def __init__(self, *, epochs: float, warmup_epochs: float, warmup_from: float, floor: float) -> None:
        self.cosine = Cosine(epochs=epochs, warmup_epochs=0, floor=floor)
        _check_warm_up(warmup_epochs, epochs)
        _check_factor("warmup_from", warmup_from)
        self.warmup_epochs = warmup_epochs
        self.warmup_from = warmup_from

    def __call__(self, epoch: float) -> float:
        """Factor at a moment counted in epochs from 0."""
        if epoch < self.warmup_epochs:
            return self.warmup_from + (1 - self.warmup_from) * epoch / self.warmup_epochs
        return self.cosine(epoch)


def _check_warm_up(warmup_epochs: float, epochs: float) -> None:
    if not 0 <= warmup_epochs < epochs:
        raise UserError(
            f"recipe.schedule.warmup_epochs={warmup_epochs} must be at least 0 and less than its epochs={epochs}."
        )


def _check_factor(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"recipe.schedule.{name}={value} must lie between 0 and 1.")


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101) whose weight decay may leave some parameters alone.

    Vision transformers are trained so: biases, parameters of normalisations, and what a network marks with
    `no_decay` (its tokens and position embeddings) keep their values but for their gradients.

    Args:
        params: Parameters.
        lr: Learning rate.
        betas: Of the running means of gradients and of their squares.
        weight_decay: Taken off a parameter in each step, in learning rates.
        decay_all: Whether it is taken off all of them.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        decay_all: bool,
    ) -> None:
        parameters = list(params)
        spared = [not decay_all and spares(p) for p in parameters]
        groups = [
            {"params": [p for p, kept in zip(parameters, spared, strict=True) if kept == which], "weight_decay": decay}
            for which, decay in ((False, weight_decay), (True, 0.0))
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, betas=betas)


def spares(parameter: nn.Parameter) -> bool:
    """Whether weight decay usually leaves a parameter alone: of one dimension at most, or marked with `no_decay`."""
    return parameter.ndim <= 1 or getattr(parameter, "no_decay", False)
