"""STL-10's binary files: the official layout, and what is missing or damaged."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.transforms.v2 import functional as tvf

from data_sets import build, ready
from distill.data import archive, stl10
from distill.data.stl10 import checksums, sizes
from distill.errors import UserError
from image_files import accept_stl10, write_stl10


@pytest.fixture
def pixels(tmp_path, monkeypatch):
    written = write_stl10(tmp_path)
    accept_stl10(monkeypatch, tmp_path / "stl10_binary")
    return written


def test_sizes_are_those_of_the_official_files():
    assert sizes().keys() == checksums().keys()
    assert sizes()["train_X.bin"] == 138_240_000
    assert sizes()["unlabeled_X.bin"] == 2_764_800_000
    assert sizes()["test_y.bin"] == 8_000


def test_reads_the_official_layout(tmp_path, pixels):
    data = ready(build("stl10", tmp_path, flip=False, padding=0, batch_size=11))
    assert data.class_names[:2] == ["airplane", "bird"]
    assert data.labels.tolist() == [*range(10), 0]  # 1 to 10 in the file
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.images[batch.index.argsort()], torch.from_numpy(pixels["train"]).float() / 255)
    tested = torch.cat([batch.images for batch in data.test_dataloader()])
    assert torch.equal(tested, torch.from_numpy(pixels["test"]).float() / 255)


def test_images_are_torchvisions(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    theirs = datasets.STL10(str(tmp_path), split="test")
    ours = ready(build("stl10", tmp_path)).test_dataloader()
    for (image, label), number in zip(theirs, range(5), strict=True):
        assert np.array_equal(np.asarray(image), ours.images[number].numpy())
        assert label == ours.labels[number]


def test_smaller_images_are_resized_with_antialiasing(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(stl10, "CHUNK", 4)
    batch = next(iter(ready(build("stl10", tmp_path, size=32)).test_dataloader()))
    expected = tvf.resize(torch.from_numpy(pixels["test"][:4]), [32, 32], antialias=True)
    assert torch.equal((batch.images * 255).round().to(torch.uint8), expected)


def test_unlabelled_images_come_with_the_label_minus_one(tmp_path, pixels):
    (batch,) = ready(build("stl10", tmp_path)).unlabeled_dataloader()
    assert batch.labels.tolist() == [-1] * 3
    assert torch.equal(batch.images, torch.from_numpy(pixels["unlabeled"]).float() / 255)


def test_unlabelled_images_are_looked_for_when_asked_for(tmp_path, pixels):
    path = tmp_path / "stl10_binary" / "unlabeled_X.bin"
    os.truncate(path, 5 * 96 * 96)
    data = ready(build("stl10", tmp_path))
    with pytest.raises(UserError, match=r"unlabeled_X.bin is truncated \(it has 46,080 bytes instead of 82,944\)"):
        data.unlabeled_dataloader()
    path.unlink()
    with pytest.raises(UserError, match=r"stl10_binary lacks unlabeled_X.bin: set data\.download=true or unpack http"):
        data.unlabeled_dataloader()


@pytest.mark.parametrize("name", ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"])
def test_a_truncated_file_is_named_with_its_sizes(tmp_path, pixels, name):
    path = tmp_path / "stl10_binary" / name
    whole = path.stat().st_size
    os.truncate(path, whole - 1)
    with pytest.raises(UserError) as error:
        ready(build("stl10", tmp_path))
    assert str(error.value).startswith(
        f"{path} is truncated (it has {whole - 1:,} bytes instead of {whole:,}): delete it and unpack http"
    )


def test_a_damaged_file_is_named(tmp_path, pixels):
    path = tmp_path / "stl10_binary" / "test_X.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"test_X.bin is damaged \(its MD5 is not [0-9a-f]{32}\): delete it and unpack"):
        ready(build("stl10", tmp_path))
    path.write_bytes(content + b"more")
    with pytest.raises(UserError, match=r"test_X.bin is damaged \(it has .* bytes instead of"):
        ready(build("stl10", tmp_path))


def test_absent_files_are_named(tmp_path, pixels):
    for name in ("train_y.bin", "test_X.bin"):
        (tmp_path / "stl10_binary" / name).unlink()
    with pytest.raises(UserError, match=r"stl10_binary lacks train_y.bin, test_X.bin: set data\.download=true or"):
        ready(build("stl10", tmp_path))


def test_downloads_what_is_absent_from_the_official_place(tmp_path, monkeypatch):
    asked = []

    def download(url, root, *, filename, md5):
        asked.append((url, filename, md5))
        write_stl10(Path(root))
        accept_stl10(monkeypatch, Path(root) / "stl10_binary")

    monkeypatch.setattr(archive, "download_and_extract_archive", download)
    for _ in range(2):  # the second time it is there
        assert ready(build("stl10", tmp_path, download=True)).num_samples == 11
    url = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
    assert asked == [(url, "stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb")]


def test_names_of_classes_may_be_absent(tmp_path, pixels):
    (tmp_path / "stl10_binary" / "class_names.txt").unlink()
    assert ready(build("stl10", tmp_path)).class_names == []


@pytest.mark.parametrize("size", [0, 97])
def test_a_size_out_of_range_is_refused(tmp_path, size):
    with pytest.raises(UserError, match=f"size={size} is out of range: STL-10's images have 96 px"):
        build("stl10", tmp_path, size=size)


def test_a_folder_that_only_holds_the_archive_is_unpacked(tmp_path, monkeypatch):
    write_stl10(tmp_path)
    accept_stl10(monkeypatch, tmp_path / "stl10_binary")
    made = Path(shutil.make_archive(str(tmp_path / "stl10_binary"), "gztar", tmp_path, "stl10_binary"))
    monkeypatch.setattr(datasets.STL10, "tgz_md5", hashlib.md5(made.read_bytes()).hexdigest())
    shutil.rmtree(tmp_path / "stl10_binary")
    assert ready(build("stl10", tmp_path, download=True)).num_samples == 11


def test_sizes_are_checked_before_checksums(tmp_path, pixels):
    (tmp_path / "stl10_binary" / "train_X.bin").write_bytes(bytes(pixels["train"].size))
    os.truncate(tmp_path / "stl10_binary" / "test_y.bin", 1)
    with pytest.raises(UserError, match=r"test_y.bin is truncated \(it has 1 bytes instead of 5\)"):
        ready(build("stl10", tmp_path))
