"""Small data sets for the tests of both pipelines."""

import pytest
import torch
from torch import Tensor

from data_sets import build, ready
from distill.data.base import Part
from distill.data.folder import Folder
from distill.data.resident import ResidentData
from image_files import accept_stl10, write_imagenet, write_images, write_stl10, write_tiny_imagenet

COMMON = {
    "root": "",
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "size": 6,
    "holdout": 0,
    "batch_size": 7,
    "eval_batch_size": 4,
    "seed": 3,
}


class Tiny(ResidentData):
    """23 + 9 images of noise in 4 classes."""

    def read(self):
        generator = torch.Generator().manual_seed(0)
        parts = []
        for count in (23, 9):
            images = torch.randint(256, (count, self.size, self.size, 3), dtype=torch.uint8, generator=generator)
            parts.append(Part(images, torch.arange(count) % 4))
        return tuple(parts)


@pytest.fixture
def tiny():
    """Builds a resident data set that is ready for its loaders."""

    def build(**numbers):
        data = Tiny(**{**COMMON, "num_classes": 4, "flip": True, "padding": 2, **numbers})
        data.prepare_data()
        data.setup()
        return data

    return build


@pytest.fixture
def tree(tmp_path):
    """A folder of 11 + 5 images in two classes."""
    write_images(tmp_path, {"train/cat": 5, "train/dog": 6, "val/cat": 3, "val/dog": 2})
    return tmp_path


@pytest.fixture
def folder():
    """Builds a worker data set, not yet set up."""

    def build(root, **numbers):
        own = {"root": str(root), "size": 16, "batch_size": 4, "num_classes": 2, "flip": True, "workers": 0}
        own["prefetch"] = 2
        return Folder(**{**COMMON, **own, **numbers})

    return build


OFFICIAL = {
    "tiny_imagenet": (write_tiny_imagenet, {"complete": False, "num_classes": 3, "size": 16, "rotation": 20}),
    "stl10": (write_stl10, {"size": 16}),
    "imagenet": (write_imagenet, {"complete": False, "size": 16}),
}


@pytest.fixture(params=OFFICIAL)
def official(request, tmp_path, monkeypatch):
    """Builds one of the data sets that have an official layout, ready for its loaders, from small files in it."""
    write, numbers = OFFICIAL[request.param]
    write(tmp_path / "data")
    if request.param == "stl10":
        accept_stl10(monkeypatch, tmp_path / "data" / "stl10_binary")
    return lambda **more: ready(build(request.param, tmp_path / "data", **{**numbers, **more}))


@pytest.fixture
def same():
    """Whether two batches agree in every bit."""

    def compare(one, other):
        for name in ("images", "labels", "index", "view", "strong"):
            a, b = getattr(one, name), getattr(other, name)
            if isinstance(a, Tensor) != isinstance(b, Tensor) or (isinstance(a, Tensor) and not torch.equal(a, b)):
                return False
        return one.rows == other.rows

    return compare
