"""DOT, the distillation-oriented trainer (Zhao et al., ICCV 2023, arXiv 2307.08436): SGD with a momentum per loss."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class DOT(Optimizer):
    """Gives the distillation loss a longer memory than the task loss.

    With g the gradients of the two losses, p a parameter, mu the momentum and d the difference:

        v_task <- (mu - d) v_task + g_task + weight_decay p
        v_distillation <- (mu + d) v_distillation + g_distillation
        p <- p - lr (v_task + v_distillation)

    A parameter that only one of the losses reaches has one buffer, with momentum mu and the weight decay, as in the
    authors' code (megvii-research/mdistiller; there the decay is missing from the first step of those that the task
    does not reach, which is not copied). With d = 0 this is `torch.optim.SGD`.

    Both gradients come from `backward_apart`, which stands in for `loss.backward()`:

        optimizer.zero_grad()
        optimizer.backward_apart(task, distillation)
        optimizer.step()

    The price is a second backward pass through the student in every step (measured for resnet20 and resnet8x4 at batch
    64 on one CPU thread: 1.7 times SGD's step, or 1.1 and 1.2 times with a resnet32x4 to ask), and memory for a second
    gradient and a second buffer. Several ranks also exchange twice as much: DDP averages the task's gradient during
    the backward pass, `step` the other one afterwards.

    Args:
        params: Parameters, or groups of them, as for any optimizer.
        lr: Learning rate.
        momentum: mu.
        delta: d, such that mu - d and mu + d are in [0, 1).
        weight_decay: Factor of a parameter that is added to its gradient.
        maximize: Climb both losses.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float,
        delta: float,
        weight_decay: float,
        maximize: bool = False,
    ) -> None:
        for name, value in {"lr": lr, "delta": delta, "weight_decay": weight_decay}.items():
            if value < 0:
                raise ValueError(f"{name}={value} must be at least 0")
        if not 0 <= momentum - delta <= momentum + delta < 1:
            raise ValueError(f"momentum={momentum} less and plus delta={delta} must both be at least 0 and below 1")
        self._distillation: dict[Tensor, Tensor] = {}  # gradients of the loss that is not in .grad
        self._of_task: set[Tensor] = set()
        numbers = {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay}
        super().__init__(params, {**numbers, "maximize": maximize})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_distillation", {})  # a copy begins between two steps
        self.__dict__.setdefault("_of_task", set())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget both gradients."""
        super().zero_grad(set_to_none)
        self._distillation.clear()
        self._of_task.clear()

    def backward_apart(self, task: Tensor, distillation: Tensor) -> None:
        """Add both losses' gradients to what they are since `zero_grad`.

        The task's goes where every gradient goes. DDP waits for all parameters of the whole loss, hence that pass also
        goes through the distillation loss, times zero.

        Args:
            task: A scalar with a graph.
            distillation: Another one; they may share their graph.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        found = torch.autograd.grad(distillation, parameters, retain_graph=True, allow_unused=True)
        new = {p: _laid_out(g, p) for p, g in zip(parameters, found, strict=True) if g is not None}
        again = [p for p in new if p in self._distillation]
        if again:
            sums = torch._foreach_add([self._distillation[p] for p in again], [new[p] for p in again])
            new.update(zip(again, sums, strict=True))
        self._distillation.update(new)
        self._of_task |= _reached(task)
        torch.autograd.backward(task + 0 * distillation)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the parameters.

        Args:
            closure: Computes the gradients anew, and may return the loss.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        apart = self._distillation
        _average_over_ranks(apart)
        for group in self.param_groups:
            mu, delta, decay = group["momentum"], group["delta"], group["weight_decay"]
            both: list[Any] = []
            task: list[Any] = []
            distillation: list[Any] = []
            for p in group["params"]:
                if p in apart:
                    (both if p in self._of_task else distillation).append(p)
                elif p.grad is not None:
                    task.append(p)
            self._move(group, "task", both, [p.grad for p in both], mu - delta, decay)
            self._move(group, "distillation", both, [apart[p] for p in both], mu + delta, 0.0)
            self._move(group, "task", task, [p.grad for p in task], mu, decay)
            self._move(group, "distillation", distillation, [apart[p] for p in distillation], mu, decay)
        return loss

    def _move(
        self,
        group: dict[str, Any],
        buffer: str,
        parameters: list[Tensor],
        gradients: list[Tensor],
        momentum: float,
        weight_decay: float,
    ) -> None:
        """One branch's step; gradients are only read, as they may be views of each other or of a bucket."""
        if not parameters:
            return
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))
        if weight_decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=weight_decay))
        buffers = []
        for p in parameters:
            state = self.state[p]
            if buffer not in state:
                state[buffer] = torch.zeros_like(p)  # from zero, the first step takes the gradient as it is
            buffers.append(state[buffer])
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient in its parameter's layout, without which operations on lists of tensors take them one by one."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def _reached(loss: Tensor) -> set[Tensor]:
    """The leaves that a loss would give a gradient, known from its graph without computing one."""
    leaves, seen, ahead = set(), {loss.grad_fn}, [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None:
            continue
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            leaves.add(leaf)
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                ahead.append(following)
    return leaves


def _average_over_ranks(gradients: dict[Tensor, Tensor]) -> None:
    """What DDP does with the gradients that pass through it, in one message."""
    if not gradients or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients.values()])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [g.numel() for g in gradients.values()])
    for (parameter, gradient), part in zip(list(gradients.items()), parts, strict=True):
        gradients[parameter] = _laid_out(part.view(gradient.shape), parameter)
