"""Small trees of image files."""

import hashlib

import numpy as np
from PIL import Image
from scipy.io import savemat

from distill.data import stl10


def write_images(root, counts, *, kinds=("png", "jpg")):
    """Class folders with images of noise, of various shapes and kinds: `counts` is {"train/cat": 3, ...}."""
    noise = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            height, width = noise.integers(20, 40, 2)
            pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.{kinds[number % len(kinds)]}")


TINY_WNIDS = ("n03000002", "n01000001", "n02000003")  # as in the official list, not in order


def write_tiny_imagenet(root, *, train=4, val=2):
    """Tiny-ImageNet's official layout: the first training image of each class and the first of `val` are grey."""
    noise = np.random.default_rng(1)
    folder = root / "tiny-imagenet-200"

    def write(path, grey):
        pixels = noise.integers(0, 256, (8, 8) if grey else (8, 8, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(path)

    for wnid in TINY_WNIDS:
        for number in range(train):
            write(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", grey=number == 0)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    lines = [(f"val_{number}.JPEG", TINY_WNIDS[number % 3]) for number in range(3 * val)]
    for number, (name, _) in enumerate(lines):
        write(folder / "val" / "images" / name, grey=number == 0)
    (folder / "val" / "val_annotations.txt").write_text("".join(f"{n}\t{w}\t0\t32\t44\t62\n" for n, w in lines))
    (folder / "wnids.txt").write_text("\n".join(TINY_WNIDS))
    (folder / "words.txt").write_text("n00001740\tentity\nn01000001\tgoldfish, Carassius auratus\nn02000003\ttoad\n")
    return folder


def write_stl10(root, *, train=11, test=5, unlabeled=3):
    """STL-10's official layout. Returns the pixels of each part, shape (images, 3, height, width)."""
    noise = np.random.default_rng(2)
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    pixels = {}
    for part, count in (("train", train), ("test", test), ("unlabeled", unlabeled)):
        pixels[part] = noise.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        pixels[part].transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (1 + np.arange(count, dtype=np.uint8) % 10).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    return pixels


def accept_stl10(monkeypatch, folder):
    """Take these files for the official ones."""
    content = {path.name: path.read_bytes() for path in folder.glob("*.bin")}
    monkeypatch.setattr(stl10, "sizes", lambda: {name: len(data) for name, data in content.items()})
    monkeypatch.setattr(stl10, "checksums", lambda: {n: hashlib.md5(data).hexdigest() for n, data in content.items()})


WNIDS = ("n01440764", "n01443537", "n02085620")  # tench, goldfish, Chihuahua: classes 0, 1 and 151 of ImageNet


def write_imagenet(root, *, layout="folders", train=3, val=5):
    """ImageNet's layouts with three classes: val in "folders", "flat" with the development kit, or "kaggle"'s."""
    base = root / "ILSVRC" / "Data" / "CLS-LOC" if layout == "kaggle" else root
    root.mkdir(parents=True, exist_ok=True)
    write_images(base, {f"train/{wnid}": train for wnid in WNIDS}, kinds=("JPEG",))
    truth = [WNIDS[number % 3] for number in range(val)]
    for number, wnid in enumerate(truth, 1):
        folder = base / "val" / wnid if layout == "folders" else base / "val"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((20, 30, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    if layout == "kaggle":
        # not in the order of the numbers
        lines = [f"ILSVRC2012_val_{n:08d},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for n, wnid in enumerate(truth, 1)]
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(lines)))
    if layout == "flat":
        write_devkit(root / "ILSVRC2012_devkit_t12" / "data", truth)
    return base


def write_devkit(folder, truth):
    """The development kit's two files; its numbers are not in the order of the wnids."""
    folder.mkdir(parents=True)
    numbers = {"n01443537": 7, "n01440764": 500, "n02085620": 1, "n00001740": 1001}
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(number, wnid, "words", 0 if number <= 1000 else 9) for wnid, number in numbers.items()]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kind).reshape(-1, 1)})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[wnid]}\n" for wnid in truth))
