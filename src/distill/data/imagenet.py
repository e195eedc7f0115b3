"""ImageNet (ILSVRC 2012; Russakovsky et al., 2015) as its archives unpack, or as Kaggle lays it out."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.imagenet_info import ImageNetInfo

from distill.data.base import Part
from distill.data.imagenet_truth import NUMBERED, classes_of_val
from distill.data.layout import class_folders
from distill.data.listing import images_in, readable, some
from distill.data.worker_data import WorkerData
from distill.errors import UserError

log = logging.getLogger("distill")

IMAGES = {"train": 1_281_167, "val": 50_000}
OF_CLASS = {"train": (732, 1300), "val": (50, 50)}  # fewest and most images of a class
KAGGLE = "ILSVRC/Data/CLS-LOC"  # where Kaggle's archive has train/ and val/

HOW_TO_GET = (
    "the licence forbids a download by us, so get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
    "https://image-net.org/download.php with an account of yours, and unpack them to train/<wnid>/ and val/"
)
PART = "say data.complete=false to use a part of the data set"
REMEDY = {
    "train": f"unpack ILSVRC2012_img_train.tar, and each class's archive in it into a folder of its name, or {PART}",
    "val": f"unpack ILSVRC2012_img_val.tar again, or {PART}",
}

Listing = list[tuple[str, str]]  # class and path of each image, the path within its folder


def wnids() -> list[str]:
    """The 1,000 classes in their order, which is alphabetical."""
    info: Any = ImageNetInfo("imagenet-1k")
    return list(info.label_names())


@dataclass(kw_only=True, eq=False, repr=False)
class ImageNet(WorkerData):
    """1,000 classes with 1,281,167 training images, tested on the 50,000 of `val/`.

    `root` holds `train/<wnid>/` and either `val/<wnid>/` or the flat `val/` of the official archive, whose classes are
    in the development kit (`ILSVRC2012_devkit_t12/data/` in `root`, or its two files themselves) or in Kaggle's
    `LOC_val_solution.csv`. Kaggle's own tree, with `ILSVRC/Data/CLS-LOC/` above these folders, is read as well.

    Classes have the numbers that published classifiers give them, in a part of the data set too: `data=folder` numbers
    the classes of a part by themselves.

    Args:
        complete: Whether all images must be there; False takes a part: fewer images, or fewer classes.

    Raises:
        UserError: If `num_classes` is not 1,000.
    """

    complete: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._wnids = wnids()
        if self.num_classes != len(self._wnids):
            raise UserError(
                f"num_classes={self.num_classes} must be 1000, ImageNet's own numbering: data=folder numbers fewer "
                "classes by themselves"
            )

    @property
    def folder(self) -> Path:
        """Where `train` and `val` lie."""
        return Path(self.root, KAGGLE) if Path(self.root, KAGGLE).is_dir() else Path(self.root)

    def read(self) -> tuple[Part, Part]:
        """List the files; `Part.images` are their paths within `root`, encoded.

        Raises:
            UserError: If folders, classes or images are missing, or the classes of val are not known; names them.
        """
        self.class_names = list(ImageNetInfo("imagenet-1k").label_descriptions())
        for name in ("train", "val"):
            if not (self.folder / name).is_dir():
                raise UserError(f"{self.folder} has no folder {name}: {HOW_TO_GET}")
        listings = {"train": self._in_folders("train"), "val": self._listed_val()}
        for name, listing in listings.items():
            self._check_counts(name, listing)
        train, val = (self._part(name, listing) for name, listing in listings.items())
        if not self.complete:
            classes = int(train.labels.bincount().count_nonzero())
            log.info(
                "a part of ImageNet: %s training and %s test images of %s classes, numbered among all 1,000",
                *(f"{count:,}" for count in (len(train), len(val), classes)),
            )
        return train, val

    def _in_folders(self, name: str) -> Listing:
        folder, endings = self.folder / name, readable()
        found = class_folders(folder)
        if strange := set(found) - set(self._wnids):
            raise UserError(f"{folder} holds {some(strange)}, which are no classes of ImageNet's 1,000: remove them")
        missing = set(self._wnids) - set(found)
        if missing and (self.complete or not found):
            raise UserError(f"{folder} lacks the class folders {some(missing)}: {REMEDY[name]}")
        return [(wnid, f"{wnid}/{path}") for wnid in found for path in images_in(folder / wnid, endings)]

    def _listed_val(self) -> Listing:
        """The images of `val/` by class folders, or by their numbers where it is flat."""
        folder = self.folder / "val"
        if class_folders(folder):
            return self._in_folders("val")
        names = list(images_in(folder, readable()))
        numbers = {name: int(match[1]) for name in names if (match := NUMBERED.fullmatch(name))}
        if strange := set(names) - numbers.keys():
            raise UserError(
                f"{folder} holds {some(strange)}, and only ILSVRC2012_val_<8 digits>.JPEG have known classes"
            )
        classes, origin = classes_of_val(Path(self.root), folder)
        if unknown := {name for name, number in numbers.items() if number not in classes}:
            raise UserError(
                f"{origin} gives the classes of {len(classes):,} images, but not of {some(unknown)}: get the whole file"
            )
        if strange := set(classes.values()) - set(self._wnids):
            raise UserError(
                f"{origin} names {some(strange)}, which are no classes of ImageNet's 1,000: get the right file"
            )
        if self.complete and (absent := classes.keys() - set(numbers.values())):
            first = some(f"ILSVRC2012_val_{number:08d}.JPEG" for number in absent)
            raise UserError(f"{folder} lacks {first}: {REMEDY['val']}")
        return [(classes[number], name) for name, number in numbers.items()]

    def _check_counts(self, name: str, listing: Sequence[tuple[str, str]]) -> None:
        if not listing:
            raise UserError(f"{self.folder / name} has no images: {REMEDY[name]}")
        if not self.complete or len(listing) == IMAGES[name]:
            return
        counts = dict.fromkeys(self._wnids, 0)
        for wnid, _ in listing:
            counts[wnid] += 1
        low, high = OF_CLASS[name]
        wrong = [f"{wnid} ({count})" for wnid, count in counts.items() if not low <= count <= high]
        which = f", with too few or too many of {some(wrong)}" if wrong else ""
        raise UserError(
            f"{self.folder / name} holds {len(listing):,} images instead of {IMAGES[name]:,}{which}: {REMEDY[name]}"
        )

    def _part(self, name: str, listing: Sequence[tuple[str, str]]) -> Part:
        above = (self.folder / name).relative_to(self.root).as_posix()
        number = {wnid: label for label, wnid in enumerate(self._wnids)}
        paths = np.array([os.fsencode(f"{above}/{path}") for _, path in listing])
        return Part(paths, torch.tensor([number[wnid] for wnid, _ in listing]))
