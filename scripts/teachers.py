"""Puts teachers where `teacher=NAME` looks for them: weights/<data>/<name>.safetensors.

python scripts/teachers.py fetch               the six public CIFAR-100 teachers of mdistiller
python scripts/teachers.py fetch --data imagenet       torchvision's ResNets
python scripts/teachers.py fetch imagenet_resnet34     one of all these
python scripts/teachers.py install outputs/... what a finished run has trained
python scripts/teachers.py list                what is there
"""

import argparse
import hashlib
import http.client
import importlib
import json
import re
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from tqdm import tqdm

from distill import zoo
from distill.build import channels_last
from distill.checkpoint import (
    key_hash,
    load_state,
    read_metadata,
    read_state,
    save_atomically,
    save_safetensors,
)
from distill.data.cifar100 import CIFAR100
from distill.deploy import RECIPE, load
from distill.errors import UserError
from distill.models import Network
from distill.scores import evaluate

TORCHVISION = "https://download.pytorch.org/models"
ARCHIVE = "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar"
MEMBER = "ckpt_epoch_240.pth"
TOLERANCE = 0.3  # points of top-1
ATTEMPTS = 8
TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20

# the recipe that the public teachers were trained with (RepDistiller, mdistiller)
DATA: dict[str, Any] = {
    "num_classes": 100,
    "size": 32,
    "mean": [0.5071, 0.4867, 0.4408],
    "std": [0.2675, 0.2565, 0.2761],
}
IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "size": 224,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@dataclass(frozen=True)
class Teacher:
    """One network in the archive.

    Attributes:
        name: In the catalogue.
        folder: In the archive, before `_vanilla`.
        top1: As published (CRD, DKD), in percent.
    """

    name: str
    folder: str
    top1: float


TEACHERS = (
    Teacher("resnet56", "resnet56", 72.34),
    Teacher("resnet110", "resnet110", 74.31),
    Teacher("resnet32x4", "resnet32x4", 79.42),
    Teacher("cifar_resnet50", "ResNet50", 79.34),
    Teacher("wrn_40_2", "wrn_40_2", 75.61),
    Teacher("vgg13", "vgg13", 74.64),
)


@dataclass(frozen=True)
class Published:
    """One network of torchvision's; the name of its file ends in the first digits of its SHA-256.

    Attributes:
        name: In the catalogue.
        files: Of the same training (IMAGENET1K_V1), the newest first: those behind it are of the papers' time, and may
            lie on a disk. What is fetched is the first.
        top1: As torchvision states it, in percent.
    """

    name: str
    files: tuple[str, ...]
    top1: float


PUBLISHED = (
    Published("imagenet_resnet18", ("resnet18-f37072fd.pth", "resnet18-5c106cde.pth"), 69.758),
    Published("imagenet_resnet34", ("resnet34-b627a593.pth", "resnet34-333f7ec4.pth"), 73.314),
    Published("imagenet_resnet50", ("resnet50-0676ba61.pth", "resnet50-19c8e357.pth"), 76.130),
)

Measure = Callable[[Network], float]


# ---------------------------------------------------------------------- download


def download(url: str, target: Path, *, attempts: int = ATTEMPTS, pause: float = 2.0) -> None:
    """Fetch a file, going on where an earlier attempt or an earlier call broke off.

    Args:
        url: http or https.
        target: Written only when whole; until then `<target>.part` grows beside it.
        attempts: How often in a row the connection may break without a new byte.
        pause: Seconds before the second attempt, doubled before each further one.

    Raises:
        UserError: If the server refuses or the connection keeps breaking.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    tag = part.with_name(part.name + ".etag")
    failures = 0
    while True:
        before = _size(part)
        try:
            _continue(url, part, tag)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(
                    f"{url} cannot be downloaded: the server answers {error.code} {error.reason}."
                ) from error
            trouble: Exception = error
        except (OSError, http.client.HTTPException) as error:
            trouble = error
        failures = 0 if _size(part) > before else failures + 1
        if failures >= attempts:
            raise UserError(
                f"{url} cannot be downloaded: {trouble}. What has arrived is kept; the same command goes on from "
                "there, and --from takes a copy fetched by other means."
            ) from trouble
        time.sleep(min(pause * 2**failures, 30.0))
    part.replace(target)
    tag.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(url: str, part: Path, tag: Path) -> None:
    """Fetch what is lacking; raises OSError if it does not arrive whole."""
    have = _size(part)
    headers = {"User-Agent": "distill"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.exists():
            headers["If-Range"] = tag.read_text()  # a file that changed meanwhile comes from its start
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # it was whole, and only its name was not changed any more
        part.unlink()
        raise ConnectionError("the file on the server is shorter than what had arrived") from error
    with reply:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range", ""))
        if reply.status == 206 and span and int(span[1]) == have:
            total = int(span[2])
        else:  # the server sends all of it
            have, total = 0, int(reply.headers.get("Content-Length", -1))
            tag.write_text(reply.headers["ETag"]) if reply.headers.get("ETag", "W/").startswith('"') else tag.unlink(
                True
            )
        bar = tqdm(total=max(total, 0) or None, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with part.open("ab" if have else "wb") as file, bar:
            while piece := reply.read(CHUNK):
                file.write(piece)
                bar.update(len(piece))
    if 0 <= total != _size(part):
        raise ConnectionError(f"the connection broke off after {_size(part)} of {total} bytes")


def check_digest(archive: Path, sidecar: Path) -> str:
    """The SHA-256 of a file, held against the one that was recorded when it was first seen.

    The publisher states none, so the first download is taken on trust, and what it holds is measured.

    Raises:
        UserError: If it is another.
    """
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not sidecar.exists():
        save_atomically(sidecar, lambda path: _write(path, f"{digest}  {archive.name}\n"))
    elif (recorded := sidecar.read_text().split()[0]) != digest:
        raise UserError(
            f"{archive} has SHA-256 {digest[:16]}..., and had {recorded[:16]}... when it was first seen: delete it to "
            f"download it again, and {sidecar} as well if you trust the new one."
        )
    return digest


def _write(path: Path, text: str) -> None:
    path.write_text(text)


# ---------------------------------------------------------------------- fetch


def build(name: str, data: dict[str, Any] = DATA) -> Network:
    """A network of the catalogue, with the classes and the normalisation of the public teachers."""
    entry = zoo.by_name(name)
    module, _, target = entry.target.rpartition(".")
    network: Network = getattr(importlib.import_module(module), target)(
        **entry.arguments, num_classes=data["num_classes"]
    )
    network.normalise(mean=data["mean"], std=data["std"], input_size=None)
    return network


def recipe(name: str, of: str, data: dict[str, Any]) -> str:
    """What a file says of how to rebuild a network of the catalogue."""
    entry = zoo.by_name(name)
    node = {"_target_": entry.target, **entry.arguments, "num_classes": data["num_classes"]}
    names = {"data": of, "student": name, "teacher": "none", "distiller": "none"}
    return json.dumps({"names": names, "data": data, "student": node})


def measure_on(root: str) -> Measure | None:
    """How to measure top-1 on CIFAR-100's test set, in percent; None where the data are not there."""
    if not Path(root, "cifar-100-python").is_dir():
        return None
    data = CIFAR100(
        root=root, holdout=0, batch_size=500, eval_batch_size=500, seed=0, flip=False, padding=0, download=False, **DATA
    )
    data.prepare_data()
    data.setup("test")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def measure(network: Network) -> float:
        bar = tqdm(data.test_dataloader(), desc="measuring", leave=False)
        found = evaluate(channels_last(network), bar, num_classes=100, device=device, precision="32-true")
        network.cpu()
        return found.scores["top1"]

    return measure


def install_teacher(
    teacher: Teacher, weights: Path, target: Path, *, measure: Measure | None, provenance: dict[str, str]
) -> str:
    """Check one public teacher and write it as .safetensors.

    Args:
        teacher: What it should be.
        weights: The unpacked checkpoint.
        target: Where to install it.
        measure: Gives its top-1 in percent; None: not measured.
        provenance: For the metadata.

    Returns:
        What was found, in words.

    Raises:
        UserError: If keys, shapes or accuracy are not those of the published teacher; nothing is installed then.
    """
    state = read_state(weights)
    network = build(teacher.name)
    load_state(network, state, what=teacher.name, origin=teacher.folder)
    metadata = provenance | {"name": teacher.name, "data": "cifar100", "published_top1": f"{teacher.top1:.2f}"}
    metadata["key_hash"] = key_hash(network.state_dict())
    said = "top-1 was not measured (no CIFAR-100 in --root)"
    if measure is not None:
        top1 = measure(network)
        if abs(top1 - teacher.top1) > TOLERANCE:
            raise UserError(
                f"{teacher.name} has top-1 {top1:.2f}, published is {teacher.top1:.2f}: it is not that teacher, "
                "so it is not installed."
            )
        metadata["top1"] = f"{top1:.2f}"
        said = f"top-1 {top1:.2f}, published {teacher.top1:.2f}"
    metadata[RECIPE] = recipe(teacher.name, "cifar100", DATA)
    save_safetensors(network, target, metadata)
    return said


def fetch(
    source: str, folder: Path, *, measure: Measure | None, teachers: Sequence[Teacher] = TEACHERS, pause: float = 2.0
) -> list[str]:
    """Install the public CIFAR-100 teachers.

    Args:
        source: URL or path of the archive.
        folder: Of all weights.
        measure: See `install_teacher`.
        teachers: What to look for.
        pause: See `download`.

    Returns:
        The names of those that failed; one does not stop the others.

    Raises:
        UserError: If the archive cannot be had or read at all.
    """
    downloads = folder / "downloads"
    if _is_url(source):
        archive = downloads / PurePosixPath(source).name
        if not archive.exists():
            download(source, archive, pause=pause)
    else:
        archive = Path(source)
        if not archive.is_file():
            raise UserError(f"{archive} does not exist: --from takes the URL or path of cifar_teachers.tar.")
    digest = check_digest(archive, downloads / f"{archive.name}.sha256")
    try:
        with tarfile.open(archive) as tar:
            # the last two parts of the path name a member; no path in the archive is trusted
            members = {PurePosixPath(member.name).parts[-2:]: member for member in tar}
            return [t.name for t in teachers if not _fetch_one(t, tar, members, source, digest, folder, measure)]
    except tarfile.TarError as error:
        raise UserError(
            f"{archive} is no tar archive, or a damaged one ({error}): delete it and fetch again."
        ) from error


def _fetch_one(
    teacher: Teacher,
    tar: tarfile.TarFile,
    members: dict[tuple[str, ...], tarfile.TarInfo],
    source: str,
    digest: str,
    folder: Path,
    measure: Measure | None,
) -> bool:
    target = folder / "cifar100" / f"{teacher.name}.safetensors"
    member = members.get((f"{teacher.folder}_vanilla", MEMBER))
    try:
        if member is None or not member.isfile():
            raise UserError(f"the archive has no file {teacher.folder}_vanilla/{MEMBER}")
        with tempfile.TemporaryDirectory(dir=_made(folder / "downloads")) as temporary:
            tar.extract(member, temporary, filter="data")
            provenance = {"source": source, "archive_sha256": digest, "file": member.name}
            said = install_teacher(
                teacher, Path(temporary, member.name), target, measure=measure, provenance=provenance
            )
    except (UserError, tarfile.FilterError, OSError) as error:
        print(f"{teacher.name}: FAILED, {error}", file=sys.stderr)
        return False
    print(f"{teacher.name}: {said}; {target}")
    return True


def fetch_published(
    source: str, folder: Path, *, networks: Sequence[Published] = PUBLISHED, pause: float = 2.0
) -> list[str]:
    """Install torchvision's networks, each checked by the SHA-256 that its name promises.

    Args:
        source: URL or folder of the files.
        folder: Of all weights.
        networks: What to look for.
        pause: See `download`.

    Returns:
        The names of those that failed; one does not stop the others.
    """
    failed = []
    for network in networks:
        target = folder / "imagenet" / f"{network.name}.safetensors"
        try:
            file = _had(source, network, folder / "downloads", pause)
            digest = _promised(file)
            built = build(network.name, IMAGENET)
            load_state(built, read_state(file), what=network.name, origin=file.name)
        except (UserError, OSError) as error:
            print(f"{network.name}: FAILED, {error}", file=sys.stderr)
            failed.append(network.name)
            continue
        metadata = {"name": network.name, "data": "imagenet", "published_top1": f"{network.top1:.2f}"}
        metadata |= {"source": f"{source}/{file.name}", "sha256": digest, "key_hash": key_hash(built.state_dict())}
        save_safetensors(built, target, metadata | {RECIPE: recipe(network.name, "imagenet", IMAGENET)})
        print(f"{network.name}: SHA-256 as promised, top-1 {network.top1:.2f} as published; {target}")
    return failed


def _had(source: str, network: Published, downloads: Path, pause: float) -> Path:
    """A network's file, on the disk already or fetched."""
    places = [downloads] if _is_url(source) else [Path(source)]
    for file in (place / name for place in places for name in network.files):
        if file.is_file():
            return file
    if not _is_url(source):
        raise UserError(f"{source} has no {' or '.join(network.files)}: --from takes the URL or folder of these files.")
    file = downloads / network.files[0]
    download(f"{source}/{file.name}", file, pause=pause)
    return file


def _promised(file: Path) -> str:
    """The SHA-256 of a file whose name ends in its first digits.

    Raises:
        UserError: If it begins otherwise.
    """
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    promise = file.stem.rpartition("-")[2]
    if not digest.startswith(promise):
        raise UserError(
            f"{file} has SHA-256 {digest[:16]}..., and its name promises {promise}...: it is damaged; delete it and"
            " fetch again."
        )
    return digest


def _is_url(source: str) -> bool:
    return re.match(r"https?://", source) is not None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---------------------------------------------------------------------- install and list


def install(source: Path, folder: Path, *, name: str | None, force: bool) -> Path:
    """Make the student of a finished run a teacher.

    Args:
        source: The run's folder, or a .safetensors file that says how to rebuild its network.
        folder: Of all weights.
        name: What to call it; None: as the student is called, and, where parts of its teacher are deployed with it,
            the method: `resnet8x4-simkd`.
        force: Whether to replace a teacher that is there.

    Returns:
        Where it was installed.

    Raises:
        UserError: If the run is not finished, its weights do not load, there is a teacher of that name, or the name is
            that of a network which it is not.
    """
    weights = source / "student.safetensors" if source.is_dir() else source
    extra = {"installed_from": str(source)}
    if source.is_dir():
        result = _result(source)
        extra |= {"top1": f"{result['last']['top1']:.2f}", "best_top1": f"{result['best']['top1']:.2f}"}
        extra |= {"evaluated_on": str(result["evaluated_on"]), "commit": str(result.get("commit"))}
    elif weights.suffix != ".safetensors":
        raise UserError(f"{source} is neither a run's folder nor a .safetensors file.")
    metadata = read_metadata(weights)
    if RECIPE not in metadata:
        raise UserError(f"{weights} does not say which network it holds: only a run's student.safetensors does.")
    recipe = json.loads(metadata[RECIPE])
    names = result["names"] if source.is_dir() else recipe["names"]
    composite = "distiller" in recipe
    name = name or (f"{names['student']}-{names['distiller']}" if composite else names["student"])
    if composite and _in_catalogue(name):
        raise UserError(
            f"{weights} holds a student together with parts of its teacher, and cannot be called {name} as that network"
            " is: --as gives another name."
        )
    target: Path = folder / names["data"] / f"{name}.safetensors"
    if target.exists() and not force:
        raise UserError(f"{target} is there already: --as gives another name, --force replaces it.")
    load(weights)  # strictly: a teacher that does not load is found now, not in the middle of a sweep
    save_safetensors(read_state(weights), target, metadata | extra)
    return target


def _in_catalogue(name: str) -> bool:
    return name in [entry.name for entry in zoo.CATALOGUE]


def choice(name: str) -> str:
    """How a run's command line names an installed teacher."""
    return f"teacher={name}" if _in_catalogue(name) else f"teacher=deployed teacher.label={name}"


def _result(run: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((run / "result.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{run} is no finished run: its result.json cannot be read ({error}).") from error
    if content.get("status") != "finished":
        raise UserError(f"{run} is no finished run: its status is {content.get('status')}.")
    return content


def listing(folder: Path) -> list[str]:
    """One line per installed teacher: data, name, top-1, where it came from."""
    lines = []
    for path in sorted(folder.glob("*/*.safetensors")):
        try:
            metadata = read_metadata(path)
        except UserError as error:
            lines.append(f"{path.parent.name:14} {path.stem:16} {error}")
            continue
        top1 = metadata.get("top1", "not measured")
        origin = metadata.get("installed_from") or metadata.get("source") or "unknown origin"
        lines.append(f"{path.parent.name:14} {path.stem:16} {top1:>12}  {origin}")
    return lines


# ---------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download, check and install public teachers")
    fetching.add_argument("names", nargs="*", metavar="NAME", help=f"some of them alone: {', '.join(_known())}")
    fetching.add_argument("--data", choices=["cifar100", "imagenet"], help="whose teachers (of the names; cifar100)")
    fetching.add_argument("--root", default="data", help="where cifar-100-python/ lies, to measure top-1 (data)")
    fetching.add_argument(
        "--from", dest="source", help="another URL or path: of the archive, or of a folder of torchvision's"
    )
    installing = commands.add_parser("install", help="make the student of a finished run a teacher")
    installing.add_argument("run", type=Path, help="a run's folder, or its student.safetensors")
    installing.add_argument("--as", dest="name", help="what to call it (as the student, and what deploys more)")
    installing.add_argument("--force", action="store_true", help="replace a teacher of that name")
    listed = commands.add_parser("list", help="say which teachers are installed")
    for command in (fetching, installing, listed):
        command.add_argument("--folder", type=Path, default=Path("weights"), help="of all weights (weights)")
    return result


def _known() -> list[str]:
    return [known.name for known in (*TEACHERS, *PUBLISHED)]


def _fetch(options: argparse.Namespace) -> int:
    names = options.names
    if unknown := [name for name in names if name not in _known()]:
        raise UserError(f"{unknown[0]} has no public weights: choose of {', '.join(_known())}.")
    small = [t for t in TEACHERS if (t.name in names if names else options.data != "imagenet")]
    large = [p for p in PUBLISHED if (p.name in names if names else options.data == "imagenet")]
    if (small and options.data == "imagenet") or (large and options.data == "cifar100"):
        raise UserError(f"{', '.join(names)}: not all of them are of {options.data}; leave --data out.")
    if small and large and options.source:
        raise UserError("--from is of one data set: fetch those of CIFAR-100 and of ImageNet one after the other.")
    failed = []
    if small:
        failed += fetch(options.source or ARCHIVE, options.folder, measure=measure_on(options.root), teachers=small)
    if large:
        failed += fetch_published((options.source or TORCHVISION).rstrip("/"), options.folder, networks=large)
    if failed:
        print(f"{len(failed)} of {len(small) + len(large)} failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "fetch":
            return _fetch(options)
        if options.command == "install":
            path = install(options.run, options.folder, name=options.name, force=options.force)
            print(f"{path}: {choice(path.stem)}")
            return 0
        print("\n".join(listing(options.folder)) or f"No teacher in {options.folder.resolve()}: try fetch.")
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
