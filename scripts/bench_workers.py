"""Images per second of the worker pipeline, beside torchvision's ImageFolder with PIL's transforms.

python scripts/bench_workers.py data/imagenet                    a folder with train/<class>/ of images
python scripts/bench_workers.py data/imagenet --workers 8 --json workers.json

plain      ImageFolder, RandomResizedCrop, flip, ToTensor and Normalize on PIL images, DataLoader: float32, normalised
ours       the same to the end, with the conversion to normalised float32 in this process, on the CPU
delivered  ours as far as the workers bring it, in bytes; the rest is little work for an accelerator
decoded    the same from images that were decoded beforehand

All have as many workers, kept between the epochs, and take turns on the same few images, which lie in memory.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from distill.data.workers import Files, TrainTransform, WorkerTrain

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
DISTINCT = 256  # image files at most: decoded, they must fit into memory


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("folder", type=Path, help="holds train/<class>/ of images")
    result.add_argument("--workers", type=int, default=2, help="processes of each pipeline (2)")
    result.add_argument("--size", type=int, default=224, help="height and width of a crop (224)")
    result.add_argument("--batch", type=int, default=64, help="images in a batch (64)")
    result.add_argument("--prefetch", type=int, default=2, help="batches that a worker makes ahead (2)")
    result.add_argument("--images", type=int, default=2048, help="images in an epoch, with repetitions (2048)")
    result.add_argument("--repeats", type=int, default=5, help="timed epochs of each (5)")
    result.add_argument("--json", type=Path, help="also write the numbers there")
    return result


def common(options: argparse.Namespace) -> dict[str, Any]:
    """What all DataLoaders are told; without workers there is nothing to keep or to make ahead."""
    kept = {"persistent_workers": True, "prefetch_factor": options.prefetch} if options.workers else {}
    return {"batch_size": options.batch, "num_workers": options.workers, **kept}


def plain(folder: ImageFolder, chosen: list[int], options: argparse.Namespace) -> DataLoader[Any]:
    """As torchvision's own training script for ImageNet does it."""
    folder.transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(options.size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(Subset(folder, chosen), shuffle=True, **common(options))


def ours(
    folder: ImageFolder, chosen: list[int], options: argparse.Namespace, *, device: str, decoded: bool
) -> WorkerTrain:
    """The pipeline of `data=folder`; on the device "meta" the conversion to float32 costs nothing."""
    paths = np.array([folder.samples[i][0].encode() for i in chosen])
    labels = torch.tensor([folder.targets[i] for i in chosen])
    transform = TrainTransform(options.size, flip=True)
    files = Files(Path(), paths, labels, transform=transform, seed=0)
    if decoded:
        pixels = {Path(folder.samples[i][0]): Files.decode(Path(folder.samples[i][0])) for i in set(chosen)}
        files.decode = pixels.__getitem__
    return WorkerTrain(
        files,
        device=torch.device(device),
        size=options.size,
        workers=options.workers,
        prefetch=options.prefetch,
        batch_size=options.batch,
        rank=0,
        world=1,
        seed=0,
        epoch=lambda: 0,
    )


def normaliser(size: int) -> Callable[[Tensor], Tensor]:
    """What subtracts ImageNet's mean and divides by its deviation, in place, from channels-last images."""
    # as large as an image, for which the CPU has faster code than for three numbers
    mean, std = (torch.tensor(numbers).repeat(size, size, 1).permute(2, 0, 1) for numbers in (MEAN, STD))
    return lambda images: images.sub_(mean).div_(std)


def speed(loader: Iterable[Any], finish: Callable[[Any], Any], *, images: int) -> float:
    """Images per second of an epoch."""
    start = time.perf_counter()
    for batch in loader:
        finish(batch)
    return images / (time.perf_counter() - start)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All pipelines in turn, after an epoch of each that is not counted."""
    folder = ImageFolder(options.folder / "train")
    distinct = list(range(0, len(folder), -(-len(folder) // DISTINCT)))
    chosen = [distinct[i % len(distinct)] for i in range(options.images)]
    build = partial(ours, folder, chosen, options)
    loaders: dict[str, Iterable[Any]] = {
        "plain": plain(folder, chosen, options),
        "ours": build(device="cpu", decoded=False),
        "delivered": build(device="meta", decoded=False),
        "decoded": build(device="meta", decoded=True),
    }
    normalise = normaliser(options.size)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(1 + options.repeats):
        for name, loader in loaders.items():
            finish = (lambda batch: normalise(batch.images)) if name == "ours" else (lambda batch: None)
            rates[name].append(speed(loader, finish, images=options.images))
    counted = {name: values[1:] for name, values in rates.items()}
    return {
        **{name: getattr(options, name) for name in ("workers", "size", "batch", "prefetch", "images")},
        "files": len(distinct),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "pipelines": {
            name: {
                "images_per_second": values,
                "median": statistics.median(values),
                "ratio": statistics.median(a / b for a, b in zip(values, counted["plain"], strict=True)),
            }
            for name, values in counted.items()
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        result = measure(options)
    except FileNotFoundError as error:  # ImageFolder's, with a sentence
        print(error, file=sys.stderr)
        return 1
    print("pipeline    images/s   lowest   highest   x plain")
    for name, row in result["pipelines"].items():
        values = row["images_per_second"]
        print(f"{name:9} {row['median']:10.0f} {min(values):8.0f} {max(values):9.0f} {row['ratio']:9.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
