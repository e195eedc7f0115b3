"""Official archives: fetched once and checked, and files checked before they are read."""

import hashlib
from pathlib import Path

from torchvision.datasets.utils import download_and_extract_archive

from distill.errors import UserError


def fetch(url: str, root: str, *, md5: str, what: str, by_hand: str) -> None:
    """Download an archive into a folder and unpack it there; one that is there already is only unpacked.

    Args:
        url: Of the archive.
        root: Where to put it, and what it holds.
        md5: Of the archive.
        what: The data set's name, for people.
        by_hand: What to do without a network, as half a sentence.

    Raises:
        UserError: If it cannot be fetched, or is not what it should be.
    """
    try:
        download_and_extract_archive(url, root, filename=url.rpartition("/")[2], md5=md5)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{what} could not be downloaded ({error}): {by_hand}") from error


def has_md5(path: Path, md5: str) -> bool:
    """Whether a file is there and intact."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5
