"""Any images in class folders, the layout of most people's own data."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill.data.base import Part
from distill.data.layout import class_folders
from distill.data.listing import images_in, readable, some
from distill.data.worker_data import WorkerData
from distill.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class Folder(WorkerData):
    """`root/train/<class>/` and `root/val/<class>/` (`root/test/` where there is no val) with images of any kind.

    Classes are numbered in the alphabetical order of their folders.
    """

    def read(self) -> tuple[Part, Part]:
        """List the files; `Part.images` are their paths within `root`, encoded.

        Raises:
            UserError: If a folder or its images are absent, or the classes differ from each other or `num_classes`.
        """
        root = Path(self.root)
        train = root / "train"
        test = root / "val" if (root / "val").is_dir() else root / "test"
        for folder, wanted in ((train, "train"), (test, "val or test")):
            if not folder.is_dir():
                raise UserError(
                    f"{root} has no folder {wanted}: it must hold train/<class>/ and val/<class>/ of images"
                )
        self.class_names = class_folders(train)
        differing = set(self.class_names) ^ set(class_folders(test))
        if differing:
            raise UserError(f"{train} and {test} must hold the same class folders, but differ in {some(differing)}")
        found = len(self.class_names)
        if found != self.num_classes:
            raise UserError(f"{train} holds {found} class folders, so num_classes={self.num_classes} must be {found}")
        return self._list(train, every_class=True), self._list(test, every_class=False)

    def _list(self, folder: Path, *, every_class: bool) -> Part:
        endings = readable()
        found = [list(images_in(folder / name, endings)) for name in self.class_names]
        empty = {name for name, paths in zip(self.class_names, found, strict=True) if not paths}
        if len(empty) == len(found) or (every_class and empty):
            raise UserError(f"{folder} has no images in the class folders {some(empty)}: every class needs some")
        named = zip(self.class_names, found, strict=True)
        paths = np.array([os.fsencode(f"{folder.name}/{name}/{path}") for name, paths in named for path in paths])
        counts = torch.tensor([len(paths) for paths in found])
        return Part(paths, torch.arange(len(found)).repeat_interleave(counts))
