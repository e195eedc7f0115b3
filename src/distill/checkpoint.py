"""Weights files: safe reading of every common container, checked loading, atomic writing."""

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from numpy._core.multiarray import scalar
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill.errors import UserError

CONTAINERS = ("model", "state_dict")  # RepDistiller and mdistiller; Lightning, timm and most others
PARTS = ("student", "teacher")
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and DDP; torch.compile
COUNTER = "num_batches_tracked"  # BatchNorm gained it in torch 0.4.1: older files lack it, and nothing depends on it
SHOWN = 4

# Accuracies in old checkpoints are numpy scalars. These reconstruct plain numbers and can run nothing.
NUMPY_SCALARS: list[Any] = [
    scalar,
    (scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
]


# ---------------------------------------------------------------------- reading


def read_state(path: str | Path, *, part: str = "student") -> dict[str, Tensor]:
    """The state_dict that a weights file holds, on the CPU, half-precision numbers widened to float32.

    Reads .safetensors, and whatever `torch.save` wrote: a bare state_dict, one under "model" or "state_dict", with
    or without the `module.` of DataParallel, and checkpoints of a whole distillation (Lightning's, mdistiller's),
    whose keys begin with `student.` and `teacher.`.

    Args:
        path: The file.
        part: Which network to take from a checkpoint that holds two: "student" or "teacher".

    Raises:
        UserError: If the file is absent, damaged, needs an unsafe load, or holds no state_dict or not that part.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return {key: _widen(value) for key, value in _read_safetensors(path).items()}
    state = _contained(_unpickle(path, map_location="cpu"), path)
    state = _part(_unwrap(state), part, path)
    return {key: _widen(value) for key, value in state.items()}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file; {} where it has none.

    Raises:
        UserError: If the file is absent or damaged.
    """
    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"{path} is no .safetensors file, or a damaged one: {error}.") from error


def key_hash(state: Mapping[str, Tensor]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all keys and shapes, in order.

    Files of one architecture share it, whatever their numbers. The order counts; .safetensors files sort their keys.
    """
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the path of a weights file (.safetensors, .pth or .ckpt).")
    return path


def _unpickle(path: str | Path, map_location: Any) -> Any:
    path = _existing(path)
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} holds objects that a safe load refuses ({found[1]}): save its state_dict alone, "
                "with torch.save(network.state_dict(), path), and load that."
            ) from error
        raise UserError(f"{path} is no weights file, or a damaged one.") from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user.") from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, IndexError, AssertionError) as error:
        # what torch raises for bytes that are no checkpoint depends on where they stop making sense
        raise UserError(f"{path} is no weights file, or a damaged one.") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _existing(path)
    try:
        return _unwrap(safetensors.torch.load_file(path, device="cpu"))
    except SafetensorError as error:
        raise UserError(f"{path} is no .safetensors file, or a damaged one: {error}.") from error


def _contained(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for name in CONTAINERS:
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            f"{path} holds no state_dict: expected tensors by name, alone or under 'model' or 'state_dict', "
            f"and found {_describe(content)}."
        )
    return dict(content)


def _describe(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"a dictionary with {_listed([str(key) for key in content])}" if content else "an empty dictionary"


def _unwrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None):
        if not state:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _part(state: dict[str, Tensor], part: str, path: Path) -> dict[str, Tensor]:
    assert part in PARTS
    if not (held := [name for name in PARTS if any(key.startswith(f"{name}.") for key in state)]):
        return state
    if part not in held:
        raise UserError(f"{path} holds no {part}, only a {held[0]}.")
    return _unwrap({key.removeprefix(f"{part}."): v for key, v in state.items() if key.startswith(f"{part}.")})


def _widen(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


# ---------------------------------------------------------------------- loading


def load_weights(module: nn.Module, path: str | Path, *, what: str, part: str = "student") -> None:
    """Load a weights file into a module, strictly; only BatchNorm's unused counters may be missing.

    Args:
        module: What the file's keys are relative to.
        path: Anything that `read_state` reads.
        what: What the module is to the user ("teacher", "student"), for messages.
        part: See `read_state`.

    Raises:
        UserError: As `read_state`, or if keys or shapes do not fit.
    """
    load_state(module, read_state(path, part=part), what=what, origin=str(path))


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, what: str, origin: str) -> None:
    """`load_weights` of a state_dict already read from `origin`.

    Raises:
        UserError: If keys or shapes do not fit; the module is unchanged then.
    """
    own = module.state_dict()
    wrong = {k: (tuple(v.shape), tuple(own[k].shape)) for k, v in state.items() if k in own and v.shape != own[k].shape}
    missing = [key for key in own if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in own]
    if not (wrong or missing or unexpected):
        module.load_state_dict(dict(state), strict=False)
        return
    head = _head(module)
    if wrong and not (missing or unexpected) and head is not None and all(k.rpartition(".")[0] == head for k in wrong):
        found, expected = wrong.get(f"{head}.weight") or next(iter(wrong.values()))
        if found[1:] == expected[1:]:
            raise UserError(
                f"The {what} weights in {origin} do not fit: their classifier has {found[0]} classes, "
                f"the data set has {expected[0]}."
            )
    troubles = []
    if missing:
        troubles.append(f"missing {_listed(missing)}")
    if unexpected:
        troubles.append(f"unexpected {_listed(unexpected)}")
    if wrong:
        troubles.append(
            "other shapes: " + _listed([f"{k} is {found}, expected {needed}" for k, (found, needed) in wrong.items()])
        )
    raise UserError(f"The {what} weights in {origin} do not fit: {'; '.join(troubles)}. Is it the right network?")


def _listed(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _head(module: nn.Module) -> str | None:
    """The name of the classifier: what the network says it is, or else its last linear layer."""
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    try:
        said = getattr(module, "classifier", None)
    except (NotImplementedError, UserError):
        said = None  # not every network ends in one linear layer
    return next((name for name, layer in linear.items() if layer is said), next(reversed(linear), None))


# ---------------------------------------------------------------------- writing


def save_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Write a file so that `path` holds either what it held or all of the new content, even after a power cut.

    Args:
        path: The target; its folder is made if need be.
        write: Writes the whole content to the path it is given, which lies in the same folder: a rename is atomic
            only within one file system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        # after a success too: renaming one hard link of a file onto another leaves both
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_safetensors(source: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Write weights and what is to be known of them, atomically.

    Args:
        source: A module or its state_dict, on any device, in any layout; shared tensors are written once per name.
        path: The target, by convention ending in .safetensors.
        metadata: Read back by `read_metadata`.
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    # through bytes: safetensors' own file writing makes files that only their owner can read
    content = safetensors.torch.save(plain, metadata)
    save_atomically(path, lambda target: cast(None, target.write_bytes(content)))


class AtomicIO(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints on a local disk: atomically, and without running what is in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; see `save_atomically`."""
        assert storage_options is None, "only local files"
        save_atomically(path, lambda target: torch.save(checkpoint, target))

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, safely whatever `weights_only` says.

        Raises:
            UserError: If the file is absent, damaged, or needs an unsafe load.
        """
        content = _unpickle(path, map_location)
        if not isinstance(content, dict):
            raise UserError(f"{path} is no checkpoint of a run.")
        return content
