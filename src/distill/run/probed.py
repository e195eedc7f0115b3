"""What a linear probe leaves behind: a folder with its configuration, a row per epoch, and the result."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from distill import record
from distill.analysis import paper
from distill.data.base import ImageData
from distill.files import CONFIG, METRICS, RESULT
from distill.kept import key_of
from distill.models.network import Network
from distill.run.config import Config
from distill.run.named import Named

SIZE = 32  # px: what Tables 8 and 9 are about
OURS = "ours"
# overrides that a row says otherwise, or that change nothing
SAID_ELSEWHERE = ("data.size=", "data.seed=", "data.complete=", "student", "protocol")


def job_of(one: Named, config: Config, *, seed: int, images: str, overrides: Iterable[str]) -> Config:
    """Everything that decides one probe's result, as its config.yaml holds it.

    Args:
        one: The network, which looks at images as the protocol says.
        config: Of the command line, resolved.
        seed: Of this probe.
        images: As `images_in` returns it.
        overrides: Of the command line.
    """
    names = {"data": config["names"]["data"]}
    names |= {key: getattr(one, key) for key in ("teacher", "student", "distiller")}
    node = {key: value for key, value in config["data"].items() if key != "seed"}
    return {
        "kind": "probe",
        "protocol": config["names"]["protocol"],
        "seed": seed,
        "data": {**node, "images": images},
        "recipe": config["recipe"],
        "probe": config["probe"],
        "trainer": config["trainer"],
        "names": names,
        "variant": _variant(one, config, overrides),
        "source": {"weights": str(one.file), "hash": key_of(one.network, _looks(one.network))},
    }


def images_in(data: ImageData) -> str:
    """What tells images apart from others of the same name, such as a part of them."""
    try:
        return data.fingerprint()[:16]
    except NotImplementedError:  # too many to read them all
        return f"{len(data.labels)} {data.labels.sum().item()}"


def _looks(network: Network) -> dict[str, Any]:
    """How a network looks at images, which is no part of its weights."""
    found: dict[str, Any] = {}
    for place, module in network.named_modules():
        if isinstance(module, Network):
            found[place] = (module.mean.flatten().tolist(), module.std.flatten().tolist(), module.input_size)
    return found


def _variant(one: Named, config: Config, overrides: Iterable[str]) -> str:
    plain = (override.lstrip("+~") for override in overrides)
    parts = [one.variant, record.variant(o for o in plain if not o.startswith(SAID_ELSEWHERE))]
    if (protocol := config["names"]["protocol"]) != OURS:
        parts.append(f"protocol={protocol}")
    if (size := config["data"]["size"]) != SIZE:
        parts.append(f"data.size={size}")
    if not config["data"].get("complete", True):
        parts.append(paper.PART)
    if one.trained_on != paper.PROBED:
        parts.append(f"data@trained_on={one.trained_on}")
    return " ".join(filter(None, parts))


# ---------------------------------------------------------------------- folders


def place_of(job: Config, output: Path) -> Path:
    """Where the folders of a probe's seeds and repetitions lie."""
    names = job["names"]
    return output / str(names["data"]) / f"{names['teacher']}-{names['student']}" / str(names["distiller"])


def finished(job: Config, output: Path) -> Path | None:
    """The folder of a probe that was finished before."""
    wanted = record.fingerprint(job)
    for file in sorted(place_of(job, output).glob(f"*/{RESULT}")):
        result = json.loads(file.read_text())
        if result.get("hash") == wanted and result.get("status") == "finished":
            return file.parent
    return None


def _new_folder(place: Path, seed: int) -> Path:
    """Named by time and seed; two networks of one name in one second get folders of their own."""
    first = place / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_seed{seed}"
    number, folder = 1, first
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}_{number}")


def write(
    job: Config,
    rows: list[dict[str, float]],
    one: Named,
    data: ImageData,
    output: Path,
    *,
    seconds: Mapping[str, float],
    precision: str,
    device: torch.device,
) -> Path:
    """Write the files of one probe, the result last.

    Args:
        job: As `job_of` returns it.
        rows: Of each epoch, as `LinearProbe.fit` yields them.
        one: The network.
        data: What it was probed on.
        output: Folder of all probes.
        seconds: Spent on the features, which other seeds may share, and on the classifier.
        precision: Of the features.
        device: Where they were computed.

    Returns:
        The probe's folder.
    """
    split = f"{data.evaluated_on}/"

    def scores(row: Mapping[str, float]) -> dict[str, float]:
        found = {key.removeprefix(split): value for key, value in row.items() if key.startswith(split)}
        return {"epoch": row["epoch"], **found}

    features = one.network.shapes(data.size).pooled
    assert features is not None
    parameters = record.count(one.network)
    result = {
        "format": 1,
        "kind": "probe",
        "status": "finished",
        "names": job["names"],
        "variant": job["variant"],
        "seed": job["seed"],
        "epochs": job["recipe"]["epochs"],
        "evaluated_on": data.evaluated_on,
        "best": scores(max(rows, key=lambda row: row[f"{split}top1"])),
        "last": scores(rows[-1]),
        "teacher": None,
        "probe": {
            "protocol": job["protocol"],
            "features": features,
            "size": data.size,
            "training_images": len(data.labels),
            "trained_on": one.trained_on,
            "source": record.file_name(None if one.file is None else str(one.file)),
            "source_hash": job["source"]["hash"],
            "source_seed": one.seed,
        },
        "parameters": {"student": parameters, "deployed": parameters, "extra": (features + 1) * data.num_classes},
        "seconds": round(sum(seconds.values()), 1),
        "seconds_of": {key: round(value, 1) for key, value in seconds.items()},
        "images_per_second": None,
        "precision": precision,
        "device": record.device_name(device),
        "versions": record.versions(),
        "commit": record.commit(),
        "hash": record.fingerprint(job),
    }
    folder = _new_folder(place_of(job, output), job["seed"])
    record.write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(job)))
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    record.write_text(folder / METRICS, table.getvalue())
    record.write_json(folder / RESULT, result)
    return folder
