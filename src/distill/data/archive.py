"""Official archives: fetched once and checked, and files checked before they are read."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.utils import download_and_extract_archive

from distill.errors import UserError


def by_hand(url: str, root: str, holds: str) -> str:
    """What to do without a network, as half a sentence; the arguments are those of `fetch`."""
    return f"unpack {url} in {root}, so that it holds {holds}/"


def fetch(url: str, root: str, *, holds: str, missing: Sequence[str], download: bool, md5: str, what: str) -> None:
    """Download an archive into a folder and unpack it there; one that is there already is only unpacked.

    Args:
        url: Of the archive.
        root: Where to put it, and what it holds.
        holds: The folder in it.
        missing: What is lacking of that.
        download: Whether the user allows it.
        md5: Of the archive.
        what: The data set's name, for people.

    Raises:
        UserError: If it may not or cannot be fetched, or is not what it should be.
    """
    otherwise = by_hand(url, root, holds)
    if not download:
        raise UserError(f"{Path(root, holds)} lacks {', '.join(missing)}: set data.download=true or {otherwise}")
    try:
        download_and_extract_archive(url, root, filename=url.rpartition("/")[2], md5=md5)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{what} could not be downloaded ({error}): {otherwise}") from error


def has_md5(path: Path, md5: str) -> bool:
    """Whether a file is there and intact."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5
