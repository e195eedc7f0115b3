"""CIFAR-100's files: absent, damaged, hostile, small copies in the official layout, and the real ones."""

import hashlib
import os
import pickle
import urllib.error

import numpy as np
import pytest
import torch
from torchvision import datasets

from distill.data import archive, cifar100
from distill.data.cifar100 import CIFAR100, unpickle
from distill.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"


def build(root, *, size=32, download=False):
    return CIFAR100(
        root=str(root),
        num_classes=100,
        mean=[0.5071, 0.4867, 0.4408],
        std=[0.2675, 0.2565, 0.2761],
        size=size,
        holdout=0,
        batch_size=4,
        eval_batch_size=4,
        seed=0,
        flip=False,
        padding=0,
        download=download,
    )


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Ten images in the official layout, with the checksums to match."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    contents = {
        "train": {"data": pixels[:6], "fine_labels": [5, 0, 99, 5, 1, 2], "coarse_labels": [0] * 6},
        "test": {"data": pixels[6:], "fine_labels": [7, 98, 0, 1], "coarse_labels": [0] * 4},
        "meta": {"fine_label_names": [f"class {i}" for i in range(100)]},
    }
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=4))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(cifar100, "checksums", lambda: sums)
    return tmp_path, pixels


def test_reads_the_official_layout(copy):
    root, pixels = copy
    data = build(root)
    data.prepare_data()
    data.setup()
    assert data.labels.tolist() == [5, 0, 99, 5, 1, 2]
    assert data.class_names[99] == "class 99"
    (batch,) = data.test_dataloader()
    assert batch.labels.tolist() == [7, 98, 0, 1]
    # a row is the red plane, then green, then blue, each line by line
    assert torch.equal(batch.images, torch.from_numpy(pixels[6:].reshape(4, 3, 32, 32)).float() / 255)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_file_is_named(copy, name):
    path = copy[0] / "cifar-100-python" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"cifar-100-python/{name} is damaged .* delete it"):
        build(copy[0]).prepare_data()


def test_absent_files_are_named(copy):
    for name in ("train", "meta"):
        (copy[0] / "cifar-100-python" / name).unlink()
    with pytest.raises(UserError, match=r"cifar-100-python lacks train, meta: set data\.download=true or unpack https"):
        build(copy[0]).prepare_data()


def test_a_failed_download_says_where_the_archive_is(tmp_path, monkeypatch):
    asked = []

    def fail(url, root, *, filename, md5):
        asked.append((url, root, filename, md5))
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(archive, "download_and_extract_archive", fail)
    with pytest.raises(UserError) as error:
        build(tmp_path, download=True).prepare_data()
    assert URL in str(error.value)
    assert f"in {tmp_path}" in str(error.value)
    assert "no network" in str(error.value)
    assert asked == [(URL, str(tmp_path), "cifar-100-python.tar.gz", datasets.CIFAR100.tgz_md5)]


def test_what_is_there_is_not_downloaded(copy, monkeypatch):
    monkeypatch.setattr(archive, "download_and_extract_archive", lambda *_, **__: pytest.fail("downloaded"))
    build(copy[0], download=True).prepare_data()


class Hostile:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_that_would_run_something_is_refused(tmp_path):
    (tmp_path / "train").write_bytes(pickle.dumps(Hostile(str(tmp_path / "created")), protocol=2))
    with pytest.raises(UserError, match="train is no file of CIFAR-100"):
        unpickle(tmp_path / "train")
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_pickle_is_refused(tmp_path, content):
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(UserError, match="train is no file of CIFAR-100"):
        unpickle(tmp_path / "train")


def test_another_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="32 px, not 64"):
        build(tmp_path, size=64)


def test_the_real_files():
    root = os.environ.get("DISTILL_DATA")
    if not root:
        pytest.skip("DISTILL_DATA, the folder with cifar-100-python/, is not set")
    data = build(root)
    data.prepare_data()
    data.setup()
    assert data.labels.bincount().tolist() == [500] * 100
    assert data.labels[:10].tolist() == [19, 29, 0, 11, 1, 86, 90, 28, 23, 31]
    first = next(iter(data.test_dataloader()))
    assert first.labels.tolist() == [49, 33, 72, 51]
    assert [data.class_names[label] for label in first.labels] == ["mountain", "forest", "seal", "mushroom"]
    pixels = data._parts["train"].images
    assert pixels.shape == (50000, 32, 32, 3)
    # the classifiers were trained with a mean and deviation rounded or measured elsewhere: the last digit may differ
    means = [pixels[..., channel].float().mean().item() / 255 for channel in range(3)]
    assert means == pytest.approx(data.mean, abs=2e-4)
