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
