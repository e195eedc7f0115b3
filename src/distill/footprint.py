"""What a training step takes of the device's memory, from one that is rehearsed without computing."""

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill.distillers import Distiller
from distill.models.network import Network
from distill.numerics import autocast
from distill.types import Batch, Spec, Step

SAMPLE = 1024  # numbers of the parameter on which an optimizer shows what it keeps


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that live, while it is entered.

    Attributes:
        held: Now.
        peak: At most so far.
    """

    def __init__(self, *apart: nn.Module) -> None:
        """Count nothing that these modules hold."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._known = {x.untyped_storage()._cdata for module in apart for x in tensors(module)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


def tensors(module: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def bytes_of(module: nn.Module | None) -> int:
    """Of parameters and buffers."""
    return 0 if module is None else sum(x.numel() * x.element_size() for x in tensors(module))


def step_peak(
    student: Network,
    teacher: Network | None,
    distiller: Distiller,
    spec: Spec,
    *,
    rows: int,
    size: int,
    precision: str,
    device: torch.device,
) -> int:
    """The most that one step takes beside parameters, buffers and the optimizer's state, in bytes.

    Copies of the networks and the method go through forward and backward on tensors that have a shape and no content:
    activations, the gradients of activations and parameters, and what the method makes of the answers, unless that
    depends on the content. What kernels take for themselves is not seen.

    Args:
        student: On its way to training.
        teacher: That it asks; None where it asks none.
        distiller: The method, prepared.
        spec: What that was built from.
        rows: Images on this device.
        size: Their height and width.
        precision: As `choose_precision` returns it.
        device: Where the step will run.

    Raises:
        Exception: Of any kind, where a network depends on the content of tensors.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        networks = copy.deepcopy((student, teacher, distiller))
    with fake:
        _put(networks, device)
        twin, asked, method = networks
        twin.train()
        method.train()
        ledger = Ledger(*(module for module in networks if module is not None))
        with ledger:
            images = torch.empty(rows, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
            index = torch.zeros(rows, dtype=torch.long, device=device)
            batch = Batch(images, index, index, strong=images.clone() if method.views == 2 else None)
            with autocast(precision, device):
                answers = method.observe(twin, asked, batch)
                try:
                    terms = method(Step(batch, *answers, epoch=1, step=0))
                except Exception:  # code that asks what is in a tensor, as CRD's does
                    terms = {"any": answers[0].logits.sum()}
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    return ledger.peak


def _put(networks: Iterable[nn.Module | None], device: torch.device) -> None:
    """Move modules whose tensors have no content, which `nn.Module.to` cannot."""
    moved: dict[int, Tensor] = {}
    for module in (m for network in networks if network is not None for m in network.modules()):
        slots: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in slots:
            for name, x in held.items():
                if x is None or x.device == device:
                    continue
                if id(x) not in moved:
                    there = x.detach().to(device)
                    moved[id(x)] = nn.Parameter(there, x.requires_grad) if isinstance(x, nn.Parameter) else there
                held[name] = moved[id(x)]


def kept_per_number(optimizer_from: Callable[[list[nn.Parameter]], Optimizer]) -> float:
    """Bytes that an optimizer keeps for each number of a parameter: 4 with momentum, 8 for Adam."""
    sample = nn.Parameter(torch.zeros(2, SAMPLE // 2))
    optimizer = optimizer_from([sample])
    sample.grad = torch.zeros_like(sample)
    optimizer.step()
    kept = [x for x in tree_leaves(optimizer.state[sample]) if isinstance(x, Tensor) and x.numel() > 1]
    return sum(x.numel() * x.element_size() for x in kept) / SAMPLE
