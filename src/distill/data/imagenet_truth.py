"""Classes of ImageNet's flat `val/`: from the official development kit, or from Kaggle's table."""

import csv
import re
from pathlib import Path

from scipy.io import loadmat

from distill.data.listing import some
from distill.errors import UserError

SOLUTION = "LOC_val_solution.csv"  # Kaggle's
DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # ImageNet's, by numbers that META explains
META = "meta.mat"
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def read_solution(path: Path) -> dict[int, str]:
    """Class of each val image by its number, from Kaggle's table; a line is name, then class and boxes.

    Raises:
        UserError: If it is another table.
    """
    classes = {}
    with path.open(newline="") as file:
        for name, *rest in list(csv.reader(file))[1:]:
            number = NUMBERED.fullmatch(f"{name}.JPEG")
            if number is None or not rest or not rest[0].split():
                raise UserError(f"{path} is no {SOLUTION} of Kaggle's: {name!r} is no image with its class")
            classes[int(number[1])] = rest[0].split()[0]
    return classes


def read_truth(truth: Path, meta: Path) -> dict[int, str]:
    """Class of each val image by its number, from ImageNet's development kit; a line is the class's ILSVRC2012_ID.

    Raises:
        UserError: If the files are damaged, or do not belong together.
    """
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        names = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    except Exception as error:  # scipy raises whatever the damage makes it
        raise UserError(f"{meta} cannot be read ({error}): unpack {DEVKIT}.tar.gz again") from error
    lines = truth.read_text().split()
    if strange := {line for line in lines if not (line.isdecimal() and int(line) in names)}:
        raise UserError(f"{truth} names {some(strange)}, which {META} does not: unpack {DEVKIT}.tar.gz again")
    return {place: names[int(line)] for place, line in enumerate(lines, 1)}


def classes_of_val(root: Path, flat: Path) -> tuple[dict[int, str], Path]:
    """Class of each image of a flat `val/` by the image's number, and the file that says it.

    Args:
        root: Where the development kit or Kaggle's table are.
        flat: The folder of the images, which may hold the kit's files as well.

    Raises:
        UserError: If neither is there, or they are damaged.
    """
    if (solution := root / SOLUTION).is_file():
        return read_solution(solution), solution
    places = (root / DEVKIT / "data", root, flat)
    found = {name: next((p / name for p in places if (p / name).is_file()), None) for name in (TRUTH, META)}
    truth, meta = found[TRUTH], found[META]
    if truth is None or meta is None:
        missing = " and ".join(name for name, path in found.items() if path is None)
        raise UserError(
            f"{flat} has no class folders, and {root} no {missing} to tell its images' classes: unpack {DEVKIT}.tar.gz "
            f"in {root}, or move the images into val/<wnid>/"
        )
    return read_truth(truth, meta), truth
