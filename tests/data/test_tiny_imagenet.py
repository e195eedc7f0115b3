"""Tiny-ImageNet's files: the official layout, others that people made of it, and what is missing or damaged."""

import hashlib
import os
import shutil
import urllib.error
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvf

from data_sets import build, ready
from distill.data import archive, tiny_imagenet
from distill.errors import UserError
from image_files import TINY_WNIDS, write_tiny_imagenet

PART = {"complete": False, "num_classes": 3}


@pytest.fixture
def folder(tmp_path):
    return write_tiny_imagenet(tmp_path)


@pytest.fixture
def official_counts(monkeypatch):
    """The files of these tests are all that there should be."""
    monkeypatch.setattr(tiny_imagenet, "CLASSES", 3)
    monkeypatch.setattr(tiny_imagenet, "OF_CLASS", {"train": 4, "val": 2})


def pixels_of(path):
    with Image.open(path) as file:
        return tvf.pil_to_tensor(file.convert("RGB"))


def refusal(root, **numbers):
    with pytest.raises(UserError) as error:
        ready(build("tiny_imagenet", root, **{"num_classes": 3, **numbers}))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_reads_the_official_layout(folder, official_counts):
    data = ready(build("tiny_imagenet", folder.parent, num_classes=3))
    # by sorted wnid, not in the order of wnids.txt
    assert data.class_names == ["goldfish, Carassius auratus", "toad", "n03000002"]
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    batch = next(iter(data.test_dataloader()))
    # TINY_WNIDS, which val goes through, have the labels 2, 0, 1
    assert batch.labels.tolist() == [2, 0, 1, 2]
    for image, name in zip(batch.images, ["val_0", "val_1", "val_2", "val_3"], strict=True):
        assert torch.equal(image, pixels_of(folder / "val" / "images" / f"{name}.JPEG").float() / 255)
    grey, colour = batch.images[:2]
    assert torch.equal(grey[0], grey[1])
    assert not torch.equal(colour[0], colour[1])
    plain = ready(build("tiny_imagenet", folder.parent, num_classes=3, flip=False, padding=0, batch_size=12))
    images = {int(i): image for b in plain.train_dataloader() for i, image in zip(b.index, b.images, strict=True)}
    for place, (wnid, number) in enumerate((w, n) for w in sorted(TINY_WNIDS) for n in range(4)):
        expected = pixels_of(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
        assert torch.equal(images[place], expected.float() / 255)


def test_smaller_images_are_resized_with_antialiasing(folder):
    batch = next(iter(ready(build("tiny_imagenet", folder.parent, **PART, size=32)).test_dataloader()))
    with Image.open(folder / "val" / "images" / "val_1.JPEG") as file:
        expected = tvf.pil_to_tensor(file.resize((32, 32), Image.Resampling.BILINEAR))  # PIL's is antialiased
    assert batch.images.shape == (4, 3, 32, 32)
    assert ((batch.images[1] * 255).round().int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("subfolder", ["", "images"])
def test_a_val_in_class_folders_is_the_same_test_set(folder, official_counts, subfolder):
    flat = ready(build("tiny_imagenet", folder.parent, num_classes=3)).test_dataloader()
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        (folder / "val" / wnid / subfolder).mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(folder / "val" / wnid / subfolder / name)
    moved = ready(build("tiny_imagenet", folder.parent, num_classes=3)).test_dataloader()

    def content(loader):
        return sorted(
            (int(y), x.sum().item()) for batch in loader for x, y in zip(batch.images, batch.labels, strict=True)
        )

    assert content(moved) == content(flat)


def test_a_part_must_be_asked_for(folder, caplog):
    text = refusal(folder.parent)
    assert text.startswith(f"{folder}/wnids.txt names 3 classes, not 200: unpack http")
    assert "data.complete=false" in text
    assert refusal(folder.parent, complete=False, num_classes=200).endswith("so num_classes=200 must be 3")
    (folder / "val" / "images" / "val_5.JPEG").unlink()
    shutil.rmtree(folder / "train" / "n01000001")
    with caplog.at_level("INFO"):
        data = ready(build("tiny_imagenet", folder.parent, **PART))
    assert data.labels.tolist() == [1] * 4 + [2] * 4
    assert [len(batch) for batch in data.test_dataloader()] == [4, 1]
    assert "a part of Tiny-ImageNet: 8 training and 5 test images" in caplog.text


def remove(*names):
    def damage(folder):
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


DAMAGES = {
    "no class folder": (remove("train/n01000001"), "{folder}/train lacks the class folders n01000001: unpack http"),
    "a strange one": (
        lambda folder: (folder / "train" / "cat").mkdir(),
        "{folder}/train holds cat, which wnids.txt does not name: remove it",
    ),
    "too few": (
        remove("train/n02000003/images/n02000003_1.JPEG"),
        "{folder}/train should hold 4 images of each class, but holds others of n02000003 (3): unpack http",
    ),
    "an annotated image": (
        remove("val/images/val_3.JPEG", "val/images/val_4.JPEG"),
        "{folder}/val/images lacks val_3.JPEG, val_4.JPEG of val_annotations.txt: unpack http",
    ),
    "no annotations": (
        remove("val/val_annotations.txt"),
        "{folder}/val has neither val_annotations.txt nor class folders: unpack http",
    ),
    "damaged annotations": (
        write("val/val_annotations.txt", "val_0.JPEG\tn01000001\t0\nval_1.JP"),
        "{folder}/val/val_annotations.txt, line 2: expected an image's name, a tab and its class, found 'val_1.JP'",
    ),
    "annotations of others": (
        write("val/val_annotations.txt", "val_0.JPEG\tn09\t0\n"),
        "{folder}/val/val_annotations.txt names the classes n09, which wnids.txt does not: unpack http",
    ),
    "too few annotations": (
        write("val/val_annotations.txt", "val_0.JPEG\tn03000002\t0\n"),
        "{folder}/val should hold 2 images of each class, but holds others of n01000001 (0), n02000003 (0), "
        "n03000002 (1): unpack http",
    ),
    "no list of classes": (remove("wnids.txt"), "{folder} lacks wnids.txt: unpack http"),
    "a cut image": (
        lambda folder: os.truncate(folder / "val/images/val_2.JPEG", 300),
        "{folder}/val/images/val_2.JPEG cannot be read as an image (",
    ),
    "no image": (
        write("train/n02000003/images/n02000003_0.JPEG", "<html>"),
        "{folder}/train/n02000003/images/n02000003_0.JPEG cannot be read as an image (",
    ),
    "another shape": (
        lambda folder: Image.new("RGB", (60, 40)).save(folder / "val/images/val_2.JPEG"),
        "{folder}/val/images/val_2.JPEG has 60 x 40 px where Tiny-ImageNet has 64 x 64: replace it",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_what_is_missing_or_damaged_is_named(folder, official_counts, case):
    damage, expected = DAMAGES[case]
    damage(folder)
    assert refusal(folder.parent).startswith(expected.replace("{folder}", str(folder)))


def test_several_damaged_images_are_counted(folder):
    for number in range(3):
        (folder / "train" / "n01000001" / "images" / f"n01000001_{number}.JPEG").write_bytes(b"")
    text = refusal(folder.parent, **PART)
    assert text.startswith(f"{folder}/train/n01000001/images/n01000001_0.JPEG cannot be read as an image")
    assert text.endswith("(and so with 2 more)")


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_part_without_images_is_none(folder, name):
    for path in (folder / name).rglob("*.JPEG"):
        path.unlink()
    assert refusal(folder.parent, **PART).startswith(f"{folder}/{name} has no images: ")


def test_an_absent_data_set_says_where_it_is_to_be_had(tmp_path):
    assert refusal(tmp_path) == (
        f"{tmp_path}/tiny-imagenet-200 lacks wnids.txt, train, val: set data.download=true or unpack "
        f"http://cs231n.stanford.edu/tiny-imagenet-200.zip in {tmp_path}, so that it holds tiny-imagenet-200/"
    )


def test_downloads_what_is_absent_from_the_official_place(tmp_path, monkeypatch, official_counts):
    asked = []

    def download(url, root, *, filename, md5):
        asked.append((url, filename, md5))
        write_tiny_imagenet(Path(root))

    monkeypatch.setattr(archive, "download_and_extract_archive", download)
    for _ in range(2):  # the second time it is there
        assert ready(build("tiny_imagenet", tmp_path, num_classes=3, download=True)).num_samples == 12
    assert asked == [(tiny_imagenet.URL, "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")]


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(archive, "download_and_extract_archive", fail)
    text = refusal(tmp_path, download=True)
    assert text.startswith("Tiny-ImageNet could not be downloaded (<urlopen error no network>): unpack http")


def test_an_archive_that_is_there_is_unpacked_if_its_checksum_holds(tmp_path, monkeypatch, official_counts):
    write_tiny_imagenet(tmp_path / "made")
    made = Path(shutil.make_archive(str(tmp_path / "tiny-imagenet-200"), "zip", tmp_path / "made"))
    monkeypatch.setattr(tiny_imagenet, "URL", (tmp_path / "absent" / made.name).as_uri())
    text = refusal(tmp_path, download=True)  # another MD5: it is asked for again
    assert text.startswith("Tiny-ImageNet could not be downloaded (<urlopen error ")
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(made.read_bytes()).hexdigest())
    assert ready(build("tiny_imagenet", tmp_path, num_classes=3, download=True)).num_samples == 12


@pytest.mark.parametrize("size", [0, 65, 224])
def test_a_size_out_of_range_is_refused(tmp_path, size):
    with pytest.raises(UserError, match=f"size={size} is out of range: Tiny-ImageNet's images have 64 px"):
        build("tiny_imagenet", tmp_path, size=size)


def test_the_real_files():
    root = Path(os.environ.get("DISTILL_DATA", "absent"))
    if not (root / "tiny-imagenet-200").is_dir():
        pytest.skip("DISTILL_DATA, the folder with tiny-imagenet-200/, is not set")
    data = ready(build("tiny_imagenet", root, complete=False, size=32))
    counts = data.labels.bincount()
    assert len(counts) == 200
    assert counts.min() == counts.max()
    assert data.class_names[0] == "goldfish, Carassius auratus"
    pixels = data._parts["train"].images.flatten(0, 2).float() / 255
    assert pixels.mean(0).tolist() == pytest.approx(data.mean, abs=5e-3)
    first = next(iter(data.test_dataloader()))
    # n03444034, n04067472, n04070727 in val_annotations.txt
    assert [data.class_names[label] for label in first.labels[:3]] == ["go-kart", "reel", "refrigerator, icebox"]
