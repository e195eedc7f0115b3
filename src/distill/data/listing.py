"""Finding image files, and naming some of many things in a sentence."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image


def readable() -> frozenset[str]:
    """Endings of the files that PIL opens."""
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def images_in(folder: Path, endings: frozenset[str]) -> Iterator[str]:
    """Image files in a folder and its subfolders, in alphabetical order, as paths within the folder.

    Text, since a million `Path` objects take their time.
    """
    above = len(f"{folder}/")
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders.sort()
        yield from (f"{place}/{name}"[above:] for name in sorted(names) if Path(name).suffix.lower() in endings)


def some(names: Iterable[str]) -> str:
    """The first few of many names, in alphabetical order."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:5])
    return f"{shown} and {len(ordered) - 5} more" if len(ordered) > 5 else shown
