"""ImageNet's files: the layouts in which people have it, and what is missing or damaged."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from data_sets import build, ready
from distill.data import imagenet
from distill.data.imagenet import wnids
from distill.errors import UserError
from image_files import WNIDS, write_devkit, write_imagenet

PART = {"complete": False, "size": 16}


@pytest.fixture
def official(monkeypatch):
    """The files of these tests are all that there should be."""
    monkeypatch.setattr(imagenet, "wnids", lambda: list(WNIDS))
    monkeypatch.setattr(imagenet, "IMAGES", {"train": 9, "val": 5})
    monkeypatch.setattr(imagenet, "OF_CLASS", {"train": (3, 3), "val": (1, 2)})


def refusal(root, **numbers):
    with pytest.raises(UserError) as error:
        ready(build("imagenet", root, **numbers))
    assert "\n" not in str(error.value)
    return str(error.value)


def evaluated(data):
    """Label of each val image by its grey value, which is 40 for the first, 80 for the second, ..."""
    batches = list(data.test_dataloader())
    greys = torch.cat([batch.images.mean((1, 2, 3)) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    return {round(grey * 255 / 40): label for grey, label in zip(greys.tolist(), labels.tolist(), strict=True)}


def test_the_classes_are_in_the_order_of_published_classifiers():
    assert len(wnids()) == 1000
    assert wnids() == sorted(wnids())
    assert [wnids().index(wnid) for wnid in WNIDS] == [0, 1, 151]


@pytest.mark.parametrize("layout", ["folders", "flat", "kaggle"])
def test_every_layout_is_the_same_data_set(tmp_path, layout, caplog):
    write_imagenet(tmp_path, layout=layout)
    with caplog.at_level("INFO"):
        data = ready(build("imagenet", tmp_path, **PART))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 151, 151, 151]
    assert evaluated(data) == {1: 0, 2: 1, 3: 151, 4: 0, 5: 1}
    assert data.class_names[151] == "Chihuahua"
    assert len(data.class_names) == 1000
    assert "a part of ImageNet: 9 training and 5 test images of 3 classes, numbered among all 1,000" in caplog.text
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 16, 16)
    assert torch.equal(batch.labels, data.labels[batch.index])


@pytest.mark.parametrize("place", [".", "val"])
def test_the_kits_files_may_lie_by_themselves(tmp_path, place):
    write_imagenet(tmp_path, layout="flat")
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    for path in kit.iterdir():
        shutil.move(path, tmp_path / place / path.name)
    assert evaluated(ready(build("imagenet", tmp_path, **PART))) == {1: 0, 2: 1, 3: 151, 4: 0, 5: 1}


@pytest.mark.parametrize("layout", ["folders", "flat", "kaggle"])
def test_the_whole_of_it_is_accepted(tmp_path, official, layout):
    write_imagenet(tmp_path, layout=layout)
    data = ready(build("imagenet", tmp_path, num_classes=3, size=16))
    assert data.labels.bincount().tolist() == [3, 3, 3]


def test_a_part_of_a_flat_val_keeps_its_classes(tmp_path):
    write_imagenet(tmp_path, layout="flat")
    for number in (1, 2, 4):
        (tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").unlink()
    (tmp_path / "val" / "notes.txt").write_text("no image")
    assert evaluated(ready(build("imagenet", tmp_path, **PART))) == {3: 151, 5: 1}


def remove(*names):
    def damage(folder):
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def add_image(name):
    return lambda folder: shutil.copy(folder / "train" / WNIDS[0] / "0.JPEG", folder / name)


KIT = "ILSVRC2012_devkit_t12/data"
TRUTH = f"{KIT}/ILSVRC2012_validation_ground_truth.txt"
FOUR = "".join(f"{number}\n" for number in (500, 7, 1, 500))

DAMAGES = {
    "no train": (remove("train"), "{root} has no folder train: the licence forbids a download by us, so get ILSVRC"),
    "no val": (remove("val"), "{root} has no folder val: the licence forbids"),
    "no class folder": (
        remove("train/n01443537"),
        "{root}/train lacks the class folders n01443537: unpack ILSVRC2012_img_train.tar, and each class's archive",
    ),
    "a strange one": (
        lambda root: (root / "train" / "cats").mkdir(),
        "{root}/train holds cats, which are no classes of ImageNet's 1,000: remove them",
    ),
    "too few images of a class": (
        remove("train/n02085620/1.JPEG"),
        "{root}/train holds 8 images instead of 9, with too few or too many of n02085620 (2): unpack",
    ),
    "too few images": (
        write(TRUTH, FOUR),
        "{root}/" + TRUTH + " gives the classes of 4 images, but not of ILSVRC2012_val",
    ),
    "a val image": (
        remove("val/ILSVRC2012_val_00000002.JPEG"),
        "{root}/val lacks ILSVRC2012_val_00000002.JPEG: unpack ILSVRC2012_img_val.tar again, or say data.complete=fal",
    ),
    "an image with another name": (
        add_image("val/cat.JPEG"),
        "{root}/val holds cat.JPEG, and only ILSVRC2012_val_<8 digits>.JPEG have known classes",
    ),
    "no truth": (
        remove(TRUTH),
        "{root}/val has no class folders, and {root} no ILSVRC2012_validation_ground_truth.txt to tell its images' "
        "classes: unpack ILSVRC2012_devkit_t12.tar.gz in {root}, or move the images into val/<wnid>/",
    ),
    "no kit": (
        remove(KIT),
        "{root}/val has no class folders, and {root} no ILSVRC2012_validation_ground_truth.txt and meta.mat to tell",
    ),
    "damaged meta.mat": (
        lambda root: os.truncate(root / KIT / "meta.mat", 200),
        "{root}/" + KIT + "/meta.mat cannot be read (",
    ),
    "another truth": (
        write(TRUTH, FOUR + "1002\n"),
        "{root}/" + TRUTH + " names 1002, which meta.mat does not: unpack",
    ),
    "a group of classes": (
        write(TRUTH, FOUR + "1001\n"),
        "{root}/" + TRUTH + " names n00001740, which are no classes of ImageNet's 1,000: get the right file",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_what_is_missing_or_damaged_is_named(tmp_path, official, case):
    damage, expected = DAMAGES[case]
    write_imagenet(tmp_path, layout="flat")
    damage(tmp_path)
    assert refusal(tmp_path, num_classes=3).startswith(expected.replace("{root}", str(tmp_path)))


@pytest.mark.parametrize("content", ["Id,Label\na,b\n", "ImageId,PredictionString\nILSVRC2012_val_00000001\n"])
def test_another_table_is_refused(tmp_path, content):
    write_imagenet(tmp_path, layout="kaggle")
    (tmp_path / "LOC_val_solution.csv").write_text(content)
    assert refusal(tmp_path, complete=False).startswith(
        f"{tmp_path}/LOC_val_solution.csv is no LOC_val_solution.csv of"
    )


def test_a_missing_class_folder_is_named_among_all_thousand(tmp_path):
    for wnid in wnids():
        if wnid not in ("n02085620", "n01440764"):
            (tmp_path / "train" / wnid).mkdir(parents=True)
    (tmp_path / "val").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path}/train lacks the class folders n01440764, n02085620: unpack")


def test_a_part_must_be_asked_for(tmp_path):
    write_imagenet(tmp_path)
    text = refusal(tmp_path)
    assert " and 992 more: unpack ILSVRC2012_img_train.tar" in text
    assert text.endswith("or say data.complete=false to use a part of the data set")


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_part_without_images_is_none(tmp_path, name):
    write_imagenet(tmp_path)
    for path in (tmp_path / name).rglob("*.JPEG"):
        path.unlink()
    assert refusal(tmp_path, complete=False).startswith(
        f"{tmp_path}/{name} has no images: unpack ILSVRC2012_img_{name}"
    )


def test_a_damaged_image_is_named_when_its_turn_comes(tmp_path):
    write_imagenet(tmp_path)
    path = tmp_path / "val" / WNIDS[1] / "ILSVRC2012_val_00000002.JPEG"
    os.truncate(path, path.stat().st_size // 2)
    loader = ready(build("imagenet", tmp_path, **PART)).test_dataloader()
    with pytest.raises(UserError, match=rf"^{path} cannot be read as an image \(.*\): replace or remove it$"):
        list(loader)


def test_other_numbers_of_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"num_classes=3 must be 1000, ImageNet's own numbering: data=folder numbers"):
        build("imagenet", tmp_path, num_classes=3)


def test_the_kit_is_read_by_its_names_whatever_their_order(tmp_path):
    write_devkit(tmp_path / "kit", ["n02085620", "n01440764"])
    found = imagenet.classes_of_val(tmp_path / "kit", tmp_path)[0]
    assert found == {1: "n02085620", 2: "n01440764"}


def test_the_real_files():
    root = Path(os.environ.get("DISTILL_DATA", "absent")) / "imagenet-sample"
    if not root.is_dir():
        pytest.skip("DISTILL_DATA, the folder with imagenet-sample/, is not set")
    data = ready(build("imagenet", root, complete=False, size=64))
    folders = sorted(path.name for path in (root / "train").iterdir())
    number = {wnid: label for label, wnid in enumerate(wnids())}
    assert data.labels.tolist() == [number[wnid] for wnid in folders for _ in (root / "train" / wnid).iterdir()]
    batch = next(iter(data.test_dataloader()))
    assert batch.labels.tolist() == [number[wnid] for wnid in folders[:4]]
    assert batch.images.std() > 0.1
