"""Class folders on disk; imports no torch, so that the command line can count classes while it completes words."""

from pathlib import Path


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in alphabetical order; hidden ones do not count; [] where it is absent."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def classes_in(root: str) -> int:
    """Class folders in `root/train`, 0 where it is absent: what `num_classes` of `data=folder` resolves to."""
    return len(class_folders(Path(root) / "train"))
