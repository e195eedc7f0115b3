"""STL-10 (Coates, Lee and Ng, AISTATS 2011) from the official binary files, checked before they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from distill.data.archive import fetch, has_md5
from distill.data.base import Part
from distill.data.decoded import shrunk
from distill.data.loader import Loader
from distill.data.resident import ResidentData
from distill.errors import UserError

NAME = "STL-10"
SIZE = 96
PIXELS = 3 * SIZE * SIZE
UNLABELED = "unlabeled_X.bin"
CHUNK = 1000  # images that are transposed and resized at a time


def checksums() -> dict[str, str]:
    """MD5 of each file, as torchvision lists them."""
    return dict([*datasets.STL10.train_list, *datasets.STL10.test_list])


def sizes() -> dict[str, int]:
    """Bytes of each file: one per label, 3 x 96 x 96 per image."""
    images = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}
    labels = {f"{part}_y.bin": images[part] for part in ("train", "test")}
    return {f"{part}_X.bin": count * PIXELS for part, count in images.items()} | labels


def read_planes(path: Path, *, size: int) -> Tensor:
    """Images of a binary file: three planes each, red, green and blue, column by column.

    Args:
        path: The file.
        size: Height and width that the images are resized to.

    Returns:
        Shape (images, size, size, 3), uint8.
    """
    # mapped, since the unlabelled images are 2.8 GB and may be wanted smaller
    planes = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, SIZE, SIZE)
    images = torch.empty(len(planes), size, size, 3, dtype=torch.uint8)
    for start in range(0, len(planes), CHUNK):
        upright = torch.from_numpy(planes[start : start + CHUNK].copy()).transpose(2, 3).contiguous()
        chunk = upright if size == SIZE else shrunk(upright, size)
        images[start : start + CHUNK] = chunk.permute(0, 2, 3, 1)
    return images


@dataclass(kw_only=True, eq=False, repr=False)
class STL10(ResidentData):
    """10 classes at 96 px: 5,000 training and 8,000 test images, and 100,000 without labels.

    `root/stl10_binary` holds the files of the official archive. Methods train on labelled images;
    `unlabeled_dataloader` gives the others to whoever needs no labels: for features, say.

    Args:
        download: Whether to fetch the archive (2.6 GB) into `root` if files are absent.
        rotation: Most degrees that training images are turned by at random, either way; 0 leaves them upright.

    Raises:
        UserError: If `size` is not 1 to 96.
    """

    download: bool
    rotation: float = field()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.size <= SIZE:
            raise UserError(f"size={self.size} is out of range: {NAME}'s images have {SIZE} px, or fewer when resized")

    @property
    def folder(self) -> Path:
        """Where the official archive puts its files."""
        return Path(self.root, datasets.STL10.base_folder)

    def prepare_data(self) -> None:
        """Fetch what is absent, and check the labelled files.

        Raises:
            UserError: If files are absent or cannot be fetched, truncated or damaged; names them.
        """
        labelled = [name for name in sizes() if name != UNLABELED]
        if missing := [name for name in labelled if not (self.folder / name).is_file()]:
            self._fetch(missing)
        self._check(labelled)

    def _fetch(self, missing: list[str]) -> None:
        official = datasets.STL10
        fetch(
            official.url,
            self.root,
            holds=official.base_folder,
            missing=missing,
            download=self.download,
            md5=official.tgz_md5,
            what=NAME,
        )

    def _check(self, names: Sequence[str]) -> None:
        """Sizes before checksums: these take a second or more, and say less."""
        remedy = f"delete it and unpack {datasets.STL10.url} again"
        for name in names:
            path, expected = self.folder / name, sizes()[name]
            found = path.stat().st_size if path.is_file() else 0
            if found != expected:
                cut = "truncated" if found < expected else "damaged"
                raise UserError(f"{path} is {cut} (it has {found:,} bytes instead of {expected:,}): {remedy}")
        for name in names:
            if not has_md5(self.folder / name, checksums()[name]):
                raise UserError(f"{self.folder / name} is damaged (its MD5 is not {checksums()[name]}): {remedy}")

    def read(self) -> tuple[Part, Part]:
        """Training and test images as uint8, shape (samples, size, size, 3)."""
        names = self.folder / datasets.STL10.class_names_file
        self.class_names = names.read_text().split() if names.is_file() else []
        return self._labelled("train"), self._labelled("test")

    def _labelled(self, part: str) -> Part:
        labels = np.fromfile(self.folder / f"{part}_y.bin", dtype=np.uint8)
        images = read_planes(self.folder / f"{part}_X.bin", size=self.size)
        return Part(images, torch.from_numpy(labels).long() - 1)  # from 1 in the file

    def unlabeled_dataloader(self) -> Loader:
        """This rank's batches of the 100,000 unlabelled images, in order and not augmented, with the label -1.

        Read and checked when it is asked for: 2.8 GB at 96 px, 0.3 GB at 32 px.

        Raises:
            UserError: If the file is absent, truncated or damaged.
        """
        if not (self.folder / UNLABELED).is_file():
            self._fetch([UNLABELED])
        self._check([UNLABELED])
        images = read_planes(self.folder / UNLABELED, size=self.size)
        return self.eval_loader(Part(images, torch.full((len(images),), -1)))
