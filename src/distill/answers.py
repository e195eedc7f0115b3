"""A table of logits in half precision, one row per named view, in memory or in files that runs share."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from distill.capacity import free_memory
from distill.checkpoint import save_atomically
from distill.errors import UserError

ROWS, SEALS, ABOUT, LOCK = "answers.f16", "seals.i32", "about.json", "lock"
LARGEST = torch.finfo(torch.float16).max


class Answers:
    """Rows of logits under numbers, of which any subset is known.

    A row counts as known when its seal, a hash of its bits that is never 0, fits. The row is written before the seal;
    so a process killed in between, two that write the same row, or a power cut that loses half of it leave an unknown
    row and never a wrong one.

    Args:
        rows: Logits, shape (number of names, classes), float16.
        seals: Of each row, shape (number of names,), int32, 0 where nothing was written.
        folder: Where they lie; None in memory.
    """

    def __init__(self, rows: Tensor, seals: Tensor, *, folder: Path | None = None) -> None:
        self.folder = folder
        self.rows = rows
        self.seals = seals
        # odd, so that every bit of every logit moves the hash
        generator = torch.Generator().manual_seed(rows.shape[1])
        self._factors = torch.randint(2**62, (rows.shape[1],), generator=generator) * 2 + 1

    @classmethod
    def in_memory(cls, names: int, classes: int) -> Self:
        """An empty table, whose pages the system gives as they are written.

        Raises:
            UserError: If it could not be filled.
        """
        size, free = size_of(names, classes), free_memory(torch.device("cpu"))
        if free is not None and size > free:
            raise UserError(
                f"teacher.keep=memory would grow to {said(size)} ({names:,} views of {classes} logits), but"
                f" {said(free)} of memory are free: choose teacher.keep=disk or off."
            )
        return cls(torch.empty(names, classes, dtype=torch.float16), torch.zeros(names, dtype=torch.int32))

    @classmethod
    def on_disk(cls, folder: Path, about: dict[str, Any], names: int, classes: int) -> Self:
        """The table in a folder, memory-mapped; made, with its whole room taken, by whoever comes first.

        Args:
            folder: Of this table alone.
            about: What it holds, for people.
            names: Rows.
            classes: Columns.

        Raises:
            UserError: If the disk has not the room, or the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / LOCK):
                if not (folder / ABOUT).exists():
                    _take_room(folder, names, classes)
                    _describe(folder / ABOUT, about)
        except OSError as error:
            raise UserError(
                f"{folder} cannot hold {said(size_of(names, classes))} of teacher answers ({error}): name another"
                " folder with teacher.keep_in=FOLDER, or choose teacher.keep=memory or off."
            ) from error
        rows = torch.from_file(str(folder / ROWS), shared=True, size=names * classes, dtype=torch.float16)
        seals = torch.from_file(str(folder / SEALS), shared=True, size=names, dtype=torch.int32)
        return cls(rows.view(names, classes), seals, folder=folder)

    def read(self, names: Tensor) -> tuple[Tensor, Tensor]:
        """Rows by their numbers.

        Args:
            names: Shape (batch,), int64.

        Returns:
            Logits, shape (batch, classes), float16, and which of them are known, boolean, shape (batch,).
        """
        rows = self.rows[names]
        return rows, self._seal(rows) == self.seals[names]

    def write(self, names: Tensor, rows: Tensor) -> None:
        """Enter rows, shape (batch, classes), float16, under their numbers, shape (batch,)."""
        self.rows[names] = rows
        self.seals[names] = self._seal(rows)

    def known(self) -> int:
        """How many rows were written."""
        return int(self.seals.count_nonzero())

    def _seal(self, rows: Tensor) -> Tensor:
        mixed = (rows.view(torch.int16).long() * self._factors).sum(dim=1)
        return (mixed >> 33).int() | (1 << 30)


def half(logits: Tensor) -> Tensor:
    """Logits as a table holds them."""
    return logits.clamp(-LARGEST, LARGEST).half()


def size_of(names: int, classes: int) -> int:
    """Bytes of a full table."""
    return names * (2 * classes + 4)


def said(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def _describe(path: Path, about: dict[str, Any]) -> None:
    def write(target: Path) -> None:
        target.write_text(json.dumps(about, indent=2) + "\n")

    save_atomically(path, write)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the system if this process dies
        yield


def _take_room(folder: Path, names: int, classes: int) -> None:
    """Write files of zeros; a file with holes would end a run by SIGBUS once the disk is full.

    Raises:
        OSError: If there is no room; nothing is left behind.
    """
    files = {folder / ROWS: 2 * names * classes, folder / SEALS: 4 * names}
    try:
        for path, size in files.items():
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        for path in files:
            path.unlink(missing_ok=True)
        raise
