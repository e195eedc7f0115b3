"""Small trees of image files."""

import numpy as np
from PIL import Image


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
    folder.mkdir()
    pixels = {}
    for part, count in (("train", train), ("test", test), ("unlabeled", unlabeled)):
        pixels[part] = noise.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        pixels[part].transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (1 + np.arange(count, dtype=np.uint8) % 10).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    return pixels
