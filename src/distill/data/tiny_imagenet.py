"""Tiny-ImageNet (Le and Yang, 2015) from the official files, which stay as they are."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from distill.data.archive import by_hand, fetch
from distill.data.base import Part
from distill.data.decoded import read_images
from distill.data.layout import class_folders
from distill.data.listing import images_in, readable, some
from distill.data.resident import ResidentData
from distill.errors import UserError

log = logging.getLogger("distill")

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"  # as public data loaders state it; the publisher states none
FOLDER = "tiny-imagenet-200"
NAME = "Tiny-ImageNet"
SIZE = 64
CLASSES = 200
OF_CLASS = {"train": 500, "val": 50}  # images of each class
REMEDY = f"unpack {URL} again, or say data.complete=false to use a part of the data set"

Listing = list[tuple[str, str]]  # class and path of each image, the path within the data set's folder


def read_annotations(path: Path) -> dict[str, str]:
    """Class of each image of the flat `val/`, by file name, in the order of the file.

    Raises:
        UserError: If a line has no class.
    """
    classes = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, *rest = line.split("\t")
        if not rest or not name:
            raise UserError(f"{path}, line {number}: expected an image's name, a tab and its class, found {line!r}")
        classes[name] = rest[0]
    return classes


@dataclass(kw_only=True, eq=False, repr=False)
class TinyImageNet(ResidentData):
    """200 classes of ImageNet at 64 px with 500 training images each, tested on the 50 of `val/`.

    `root/tiny-imagenet-200` holds `wnids.txt` (the classes), `words.txt` (their names), `train/<wnid>/images/` and
    `val/images/` with `val/val_annotations.txt`; a `val/` that was rearranged into class folders is read as well.
    Classes are numbered in the order of their sorted wnids, as by everyone who reads class folders. Grey images become
    colour ones of equal channels. The official test images have no labels and are not read.

    Args:
        download: Whether to fetch the archive into `root` if the data set's folder is absent.
        complete: Whether all 110,000 images must be there; False takes a part: fewer images, or fewer classes, of
            which `wnids.txt` has the list.
        rotation: Most degrees that training images are turned by at random, either way; 0 leaves them upright.

    Raises:
        UserError: If `size` is not 1 to 64.
    """

    download: bool
    complete: bool
    rotation: float = field()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.size <= SIZE:
            raise UserError(f"size={self.size} is out of range: {NAME}'s images have {SIZE} px, or fewer when resized")

    @property
    def folder(self) -> Path:
        """Where the official archive puts its files."""
        return Path(self.root, FOLDER)

    def prepare_data(self) -> None:
        """Fetch the archive if nothing of it is there.

        Raises:
            UserError: If the data set is absent or incomplete, or cannot be fetched.
        """
        missing = [name for name in ("wnids.txt", "train", "val") if not (self.folder / name).exists()]
        if len(missing) == 3:
            fetch(URL, self.root, holds=FOLDER, missing=missing, download=self.download, md5=MD5, what=NAME)
        elif missing:
            raise UserError(f"{self.folder} lacks {', '.join(missing)}: {by_hand(URL, self.root, FOLDER)}")

    def read(self) -> tuple[Part, Part]:
        """Training and test images as uint8, shape (samples, size, size, 3).

        Raises:
            UserError: If classes or images are missing, or an image cannot be read; names them.
        """
        wnids = sorted(set((self.folder / "wnids.txt").read_text().split()))
        if self.complete and len(wnids) != CLASSES:
            raise UserError(f"{self.folder / 'wnids.txt'} names {len(wnids)} classes, not {CLASSES}: {REMEDY}")
        if len(wnids) != self.num_classes:
            raise UserError(
                f"{self.folder / 'wnids.txt'} names {len(wnids)} classes, so num_classes={self.num_classes} must be "
                f"{len(wnids)}"
            )
        self.class_names = self._words(wnids)
        listings = {"train": self._in_folders("train", wnids), "val": self._listed_val(wnids)}
        for name, listing in listings.items():
            self._check_counts(name, listing, wnids)
        number = {wnid: label for label, wnid in enumerate(wnids)}
        train, val = (self._decoded(listings[name], number) for name in ("train", "val"))
        if not self.complete:
            log.info("a part of %s: %s training and %s test images", NAME, f"{len(train):,}", f"{len(val):,}")
        return train, val

    def _words(self, wnids: Sequence[str]) -> list[str]:
        """Names of the classes; their wnids without `words.txt`."""
        path = self.folder / "words.txt"
        lines = path.read_text().splitlines() if path.is_file() else []
        words = dict(line.split("\t", 1) for line in lines if "\t" in line)
        return [words.get(wnid, wnid) for wnid in wnids]

    def _in_folders(self, name: str, wnids: Sequence[str]) -> Listing:
        folder, endings = self.folder / name, readable()
        found = [wnid for wnid in class_folders(folder) if wnid != "images"]
        if strange := set(found) - set(wnids):
            raise UserError(f"{folder} holds {some(strange)}, which wnids.txt does not name: remove it")
        missing = set(wnids) - set(found)
        if missing and (self.complete or len(missing) == len(wnids)):
            raise UserError(f"{folder} lacks the class folders {some(missing)}: {REMEDY}")
        return [(wnid, f"{name}/{wnid}/{path}") for wnid in found for path in images_in(folder / wnid, endings)]

    def _listed_val(self, wnids: Sequence[str]) -> Listing:
        """The images of `val/` by their annotations, or by class folders where someone has made these."""
        folder = self.folder / "val"
        if set(class_folders(folder)) - {"images"}:
            return self._in_folders("val", wnids)
        annotations = folder / "val_annotations.txt"
        if not annotations.is_file():
            raise UserError(f"{folder} has neither val_annotations.txt nor class folders: {REMEDY}")
        classes = read_annotations(annotations)
        if strange := set(classes.values()) - set(wnids):
            raise UserError(f"{annotations} names the classes {some(strange)}, which wnids.txt does not: {REMEDY}")
        there = set(images_in(folder / "images", readable()))
        if (absent := classes.keys() - there) and self.complete:
            raise UserError(f"{folder / 'images'} lacks {some(absent)} of val_annotations.txt: {REMEDY}")
        return [(wnid, f"val/images/{name}") for name, wnid in classes.items() if name in there]

    def _check_counts(self, name: str, listing: Listing, wnids: Iterable[str]) -> None:
        if not listing:
            raise UserError(f"{self.folder / name} has no images: {REMEDY}")
        counts = dict.fromkeys(wnids, 0)
        for wnid, _ in listing:
            counts[wnid] += 1
        wrong = {f"{wnid} ({count})" for wnid, count in counts.items() if count != OF_CLASS[name]}
        if wrong and self.complete:
            raise UserError(
                f"{self.folder / name} should hold {OF_CLASS[name]} images of each class, but holds others of "
                f"{some(wrong)}: {REMEDY}"
            )

    def _decoded(self, listing: Listing, number: Mapping[str, int]) -> Part:
        paths = [f"{self.folder}/{path}" for _, path in listing]
        images = read_images(paths, pixels=SIZE, size=self.size, what=NAME)
        return Part(images, torch.tensor([number[wnid] for wnid, _ in listing]))
