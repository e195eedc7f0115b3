"""CIFAR-100 (Krizhevsky, 2009) from the official files, checked before they are read."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from distill.data.archive import fetch, has_md5
from distill.data.base import Part
from distill.data.resident import ResidentData
from distill.errors import UserError

SIZE = 32


def checksums() -> dict[str, str]:
    """MD5 of each file; torchvision lists them, and the publisher states no SHA-256."""
    official = datasets.CIFAR100
    return dict([*official.train_list, *official.test_list, [official.meta["filename"], official.meta["md5"]]])


class _ArraysOnly(pickle.Unpickler):
    """Reads containers, numbers, text and numpy arrays; a file that names anything else is refused unread."""

    allowed = frozenset({("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        # numpy moved its core: old files name numpy.core.multiarray
        place = "multiarray" if module in {"numpy.core.multiarray", "numpy._core.multiarray"} else module
        if (place, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of images")
        return super().find_class("numpy._core.multiarray" if place == "multiarray" else module, name)


def unpickle(path: Path) -> dict[str, Any]:
    """Read one of the official files, without running what it may contain.

    Raises:
        UserError: If it holds anything but arrays, lists and text.
    """
    try:
        with path.open("rb") as file:
            content: dict[str, Any] = _ArraysOnly(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path} is no file of CIFAR-100 ({error}): delete it and fetch the official archive") from None
    return content


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR100(ResidentData):
    """50,000 training and 10,000 test images of 32 px in 100 classes (the fine labels).

    Args:
        download: Whether to fetch the archive into `root` if the files are absent.

    Raises:
        UserError: If `size` is not 32.
    """

    download: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != SIZE:
            raise UserError(f"CIFAR-100's images have {SIZE} px, not {self.size}: networks resize their own input")

    @property
    def folder(self) -> Path:
        """Where the official archive puts its files."""
        return Path(self.root, datasets.CIFAR100.base_folder)

    def prepare_data(self) -> None:
        """Fetch what is absent and check what is there.

        Raises:
            UserError: If files are absent or cannot be fetched, or if their MD5 is not the official one.
        """
        missing = [name for name in checksums() if not (self.folder / name).is_file()]
        if missing:
            self._fetch(missing)
        for name, md5 in checksums().items():
            path = self.folder / name
            if not has_md5(path, md5):
                raise UserError(
                    f"{path} is damaged (its MD5 is not {md5}): delete it and unpack {datasets.CIFAR100.url} again"
                )

    def _fetch(self, missing: list[str]) -> None:
        official = datasets.CIFAR100
        fetch(
            official.url,
            self.root,
            holds=official.base_folder,
            missing=missing,
            download=self.download,
            md5=official.tgz_md5,
            what="CIFAR-100",
        )

    def read(self) -> tuple[Part, Part]:
        """Training and test images as uint8, shape (samples, 32, 32, 3)."""
        self.class_names = list(unpickle(self.folder / "meta")["fine_label_names"])
        return self._read("train"), self._read("test")

    def _read(self, name: str) -> Part:
        content = unpickle(self.folder / name)
        planes = torch.from_numpy(np.ascontiguousarray(content["data"])).view(-1, 3, SIZE, SIZE)
        return Part(planes.permute(0, 2, 3, 1).contiguous(), torch.tensor(content["fine_labels"]))
