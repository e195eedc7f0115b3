"""A teacher that answers each view once: later, it is asked no more."""

import hashlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.answers import Answers, half
from distill.models.network import Network, Standin
from distill.types import Batch, Output

# Rows of every forward pass, padded where fewer are unknown. One shape per device: kernels are chosen by shapes, and a
# view's bits must not depend on how many others of its batch were unknown. Small enough to waste little, large enough
# to fill the device.
CPU_ROWS, GPU_ROWS = 16, 64


def rows_on(device: torch.device) -> int:
    """Rows of one forward pass of a kept teacher."""
    return CPU_ROWS if device.type == "cpu" else GPU_ROWS


class KeptTeacher(Standin):
    """Looks the logits of named views up, and asks a network for the others.

    Answers are rounded to half precision before their first use, so that it does not matter who computed them: a run
    that finds them and one that computes them end with equal bits.

    Args:
        network: The frozen teacher.
        answers: What is known.
    """

    def __init__(self, network: Network, answers: Answers) -> None:
        super().__init__(network)
        self.answers = answers
        self._under_way: deque[tuple[Tensor, Tensor, Any]] = deque()

    @torch.no_grad()
    def ask(self, batch: Batch) -> Output:
        """Logits alone, float32, shape (batch, classes)."""
        assert batch.names is not None
        self._enter()
        rows, known = self.answers.read(batch.names)
        logits = rows.to(batch.images.device, non_blocking=True).float()
        if not bool(known.all()):  # on the CPU: nothing waits for the device
            unknown = (~known).nonzero().flatten()
            places = unknown.to(logits.device, non_blocking=True)
            fresh = self._answer(batch.images[places])
            self._keep(batch.names[unknown], fresh)
            logits[places] = fresh.float()
        return Output(logits)

    def _answer(self, images: Tensor) -> Tensor:
        """Half-precision logits of images, by passes of one shape."""
        rows = rows_on(images.device)
        missing = -len(images) % rows
        padded = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        padded = padded.contiguous(memory_format=torch.channels_last)
        logits = torch.cat([self.inner(part).logits for part in torch.split(padded, rows)])
        return half(logits[: len(images)])

    def _keep(self, names: Tensor, fresh: Tensor) -> None:
        if fresh.device.type != "cuda":
            self.answers.write(names, fresh.cpu())
            return
        # written once they have arrived, which is not waited for
        arriving = torch.empty(fresh.shape, dtype=fresh.dtype, pin_memory=True)
        arriving.copy_(fresh, non_blocking=True)
        event = torch.cuda.current_stream(fresh.device).record_event()
        self._under_way.append((names, arriving, event))

    def _enter(self, *, wait: bool = False) -> None:
        while self._under_way and (wait or self._under_way[0][2].query()):
            names, arrived, event = self._under_way.popleft()
            event.synchronize()
            self.answers.write(names, arrived)

    def finish(self) -> None:
        """Enter what is still on its way from the device."""
        self._enter(wait=True)


def key_of(network: nn.Module, about: Mapping[str, Any]) -> str:
    """A name for a table of answers that no other teacher, data set or arithmetic shares.

    Args:
        network: The teacher as it was loaded, whose weights and buffers count by their bits.
        about: Everything else that decides a logit, as plain data.
    """
    digest = hashlib.sha256(repr(sorted(about.items())).encode())
    state: Mapping[str, Tensor] = network.state_dict()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]
