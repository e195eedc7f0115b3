"""Many small image files, read once into memory.

There is no cache of the pixels beside the files: a core decodes some 4,000 of Tiny-ImageNet's images a second, so that
a cache would save a run of hours half a minute at most, and would be 1.4 GB that can be damaged or out of date.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf
from tqdm.auto import tqdm

from distill.data.workers import Files, unreadable
from distill.errors import UserError

CHUNK = 128  # images that a thread reads at a time


def shrunk(images: Tensor, size: int) -> Tensor:
    """Images resized bilinearly with antialiasing, (..., 3, height, width), uint8, to (..., 3, size, size)."""
    small: Tensor = tvf.resize(images, [size, size], antialias=True)
    return small


def read_images(paths: Sequence[str], *, pixels: int, size: int, what: str) -> Tensor:
    """Decode image files on all of this process's threads, with a progress bar in a terminal.

    Args:
        paths: The files, grey or in colour.
        pixels: Height and width that each must have.
        size: Height and width that they are resized to.
        what: Name of the data set, for people.

    Returns:
        Shape (images, size, size, 3), uint8.

    Raises:
        UserError: If files cannot be read, or have another shape: names the first and says how many more.
    """
    images = torch.empty(len(paths), size, size, 3, dtype=torch.uint8)

    def read(start: int) -> list[str]:
        complaints = []
        for row, name in enumerate(paths[start : start + CHUNK], start):
            try:
                image = Files.decode(Path(name))
            except Exception as error:
                complaints.append(unreadable(name, error))
                continue
            if image.shape[1:] != (pixels, pixels):
                height, width = image.shape[1:]
                complaints.append(f"{name} has {width} x {height} px where {what} has {pixels} x {pixels}: replace it")
                continue
            images[row] = (image if size == pixels else shrunk(image, size)).permute(1, 2, 0)
        return complaints

    starts = range(0, len(paths), CHUNK)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        bar = tqdm(total=len(paths), desc=f"reading {what}", unit="image", leave=False, disable=None)
        complaints = []
        with bar:
            for start, found in zip(starts, pool.map(read, starts), strict=True):
                complaints += found
                bar.update(len(paths[start : start + CHUNK]))
    if complaints:
        more = f" (and so with {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        raise UserError(complaints[0] + more)
    return images
