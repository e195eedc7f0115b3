"""Linear probes of several networks, from a command line to their results."""

import copy
import csv
import io
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from distill import record
from distill.analysis import paper
from distill.analysis.store import find_results
from distill.analysis.table import group, markdown
from distill.build import build
from distill.data.base import ImageData
from distill.errors import UserError
from distill.files import CONFIG, METRICS, RESULT
from distill.kept import key_of
from distill.numerics import choose_precision, flush_denormals
from distill.probe import Images, LinearProbe, Recipe
from distill.run import config as settings
from distill.run.check import check_keys, check_recipe
from distill.run.config import Config, device_of
from distill.run.named import ALONE, Named, named_networks, of_node
from distill.run.parts import build_data

log = logging.getLogger("distill")

SIZE = 32  # px: what Tables 8 and 9 are about
OURS = "ours"
OF_A_PROBE = (*("networks", "data", "trained_on", "student", "recipe", "probe", "trainer", "seed", "output", "names"),)
# overrides that have no place in a row's name: it says them otherwise, or they change nothing
_SAID_ELSEWHERE = ("data.size=", "data.seed=", "student", "protocol")


def probe(cfg: DictConfig) -> list[Path]:
    """Probe the networks that a command line names, write their results, and print them as a table.

    Returns:
        The folder of each probe, those found finished included.

    Raises:
        UserError: For every mistake in the command line, before the first network looks at an image.
    """
    flush_denormals()
    overrides = list(HydraConfig.get().overrides.task)
    config = settings.resolve(_without_student(cfg))
    check_keys(config, OF_A_PROBE, "the configuration", "")
    check_recipe(config["recipe"])
    if config["recipe"]["accumulate"] != 1:
        raise UserError("recipe.accumulate must be 1: a batch of features always fits.")
    recipe = _recipe(config["recipe"])
    protocol = build(config["probe"], what="probe")
    if not isinstance(protocol, LinearProbe):
        raise UserError(f"probe._target_={config['probe']['_target_']} is no distill.probe.LinearProbe.")
    seeds = _seeds(config["seed"])
    device = device_of(config["trainer"])
    precision, _ = choose_precision(config["trainer"]["precision"], device)
    networks = _networks(cfg, config)
    for one in networks:
        check_pooled(one, config["data"]["size"])
    data = build_data(config)
    names = config["names"]
    adapted = [
        replace(one, network=protocol.adapted(one.network, data=names["data"], mean=data.mean, std=data.std))
        for one in networks
    ]
    log.info("%s, protocol %s, precision %s", _about(data, names["data"]), names["protocol"], precision)
    images = Images(data.train_dataloader, data.plain_dataloader(), data.val_dataloader())
    folders: list[Path] = []
    for one in adapted:
        jobs = [_job(one, config, data, seed=seed, overrides=overrides) for seed in seeds or [one.seed or 0]]
        folders += _probe_one(one, jobs, protocol, recipe, data, images, Path(config["output"]), device, precision)
    rows, notes = group(find_results(folders)[0])
    print("\n" + markdown(rows, notes), end="")
    return folders


# ---------------------------------------------------------------------- what is asked for


def _without_student(cfg: DictConfig) -> DictConfig:
    """A student's node follows the data set that it knows, not the one that it is probed on."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        cfg.student = None
    return cfg


def _networks(cfg: DictConfig, config: Config) -> list[Named]:
    trained_on = str(HydraConfig.get().runtime.choices["data@trained_on"])
    about = {"data": config["trained_on"], "trained_on": trained_on}
    found = named_networks(config["networks"], **about)
    if cfg.get("student") is not None:
        known = copy.deepcopy(cfg)
        with open_dict(known):
            known.data = known.trained_on
        student = settings.resolve(known)
        found.append(of_node(student["student"], name=student["names"]["student"], **about))
    if not found:
        raise UserError(
            "There is nothing to probe: say networks=[RUN_FOLDER,NAME:FILE,...], or student=NAME student.weights=FILE."
        )
    return found


def _seeds(asked: Any) -> list[int]:
    """As the command line has them; none where each network brings its own."""
    seeds = asked if isinstance(asked, list) else [] if asked is None else [asked]
    if wrong := [seed for seed in seeds if not isinstance(seed, int) or isinstance(seed, bool)]:
        raise UserError(f"seed={wrong[0]} must be a whole number, a list of them, or null for that of each run.")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seed={seeds} names a seed twice.")
    return seeds


def _recipe(node: Config) -> Recipe:
    return Recipe(
        epochs=node["epochs"],
        batch_size=node["batch_size"],
        lr=node["lr"],
        weight_decay=node["weight_decay"],
        schedule=build(node["schedule"], what="recipe.schedule"),
    )


def check_pooled(one: Named, size: int) -> None:
    """Refuse a network whose features cannot be seen.

    Args:
        one: The network.
        size: Of the images, in px.

    Raises:
        UserError: If its answer says nothing of what its classifier reads.
    """
    if one.network.shapes(size).pooled is None:
        raise UserError(
            f"{one.student} does not show what its classifier reads (Output.pooled is None): let it derive from"
            " distill.models.Network and answer with it."
        )


def _about(data: ImageData, name: str) -> str:
    train, test = len(data.labels), data.val_dataloader().cuts.num_samples
    text = f"{name}: {train:,} training and {test:,} {data.evaluated_on} images of {data.size} px"
    return text if data.size == SIZE else f"{text} (published probes look at {SIZE} px)"


# ---------------------------------------------------------------------- one network


def _job(one: Named, config: Config, data: ImageData, *, seed: int, overrides: Iterable[str]) -> Config:
    """Everything that decides one probe's result, as its config.yaml holds it."""
    names = {"data": config["names"]["data"]}
    names |= {key: getattr(one, key) for key in ("teacher", "student", "distiller")}
    node = {key: value for key, value in config["data"].items() if key != "seed"}
    job = {
        "kind": "probe",
        "seed": seed,
        "data": {**node, "images": _images_in(data)},
        "recipe": config["recipe"],
        "probe": config["probe"],
        "trainer": config["trainer"],
        "names": names,
        "variant": _variant(one, config, overrides),
        "source": {"weights": str(one.file), "hash": key_of(one.network, _looks(one))},
    }
    return {**job, "protocol": config["names"]["protocol"]}


def _looks(one: Named) -> dict[str, Any]:
    """How a network looks at images, which is no part of its weights."""
    network = one.network
    return {
        f"{place}.{key}": value
        for place, module in network.named_modules()
        if hasattr(module, "input_size") and isinstance(getattr(module, "mean", None), torch.Tensor)
        for key, value in (
            ("mean", module.mean.flatten().tolist()),
            ("std", module.std.flatten().tolist()),
            ("input_size", module.input_size),
        )
    }


def _images_in(data: ImageData) -> str:
    """What tells the images apart from others of the same name, such as a part of them."""
    try:
        return data.fingerprint()[:16]
    except NotImplementedError:  # too many to read them all
        return f"{len(data.labels)} {data.labels.sum().item()}"


def _variant(one: Named, config: Config, overrides: Iterable[str]) -> str:
    plain = (override.lstrip("+~") for override in overrides)
    said = record.variant(o for o in plain if not o.startswith(_SAID_ELSEWHERE))
    parts = [one.variant, said]
    if (protocol := config["names"]["protocol"]) != OURS:
        parts.append(f"protocol={protocol}")
    if (size := config["data"]["size"]) != SIZE:
        parts.append(f"data.size={size}")
    if one.trained_on != paper.PROBED:
        parts.append(f"data@trained_on={one.trained_on}")
    return " ".join(filter(None, parts))


def _probe_one(
    one: Named,
    jobs: list[Config],
    protocol: LinearProbe,
    recipe: Recipe,
    data: ImageData,
    images: Images,
    output: Path,
    device: torch.device,
    precision: str,
) -> Iterator[Path]:
    """Of each job the folder: those that are finished are left alone, the others share the features."""
    title = one.student if one.distiller == ALONE else f"{one.teacher} → {one.student}, {one.distiller}"
    epochs_of, looked = None, 0.0
    for job in jobs:
        names = job["names"]
        place = output / names["data"] / f"{names['teacher']}-{names['student']}" / names["distiller"]
        hash_ = record.fingerprint(job)
        if (found := _finished(place, hash_)) is not None:
            log.info("%s, seed %d: finished already, see %s", title, job["seed"], found)
            yield found
            continue
        if epochs_of is None:
            since = time.monotonic()
            epochs_of = protocol.features(one.network, images, device=device, precision=precision)
            looked = time.monotonic() - since
            log.info("%s: %.0f s for what is computed once", title, looked)
        since = time.monotonic()
        rows = []
        for row in protocol.fit(
            epochs_of(job["seed"]),
            recipe,
            num_classes=data.num_classes,
            name=one.student,
            seed=job["seed"],
            split=data.evaluated_on,
        ):
            rows.append(row)
            if len(rows) % max(1, recipe.epochs // 4) == 0:
                top1 = row[f"{data.evaluated_on}/top1"]
                log.info("%s, seed %d: epoch %d, top-1 %.2f", title, job["seed"], row["epoch"], top1)
        seconds = {"features": round(looked, 1), "classifier": round(time.monotonic() - since, 1)}
        yield _write(place, job, rows, one, data, seconds=seconds, device=device, precision=precision, hash_=hash_)


def _finished(place: Path, hash_: str) -> Path | None:
    for file in sorted(place.glob(f"*/{RESULT}")):
        result = json.loads(file.read_text())
        if result.get("hash") == hash_ and result.get("status") == "finished":
            return file.parent
    return None


def _write(
    place: Path,
    job: Config,
    rows: list[dict[str, float]],
    one: Named,
    data: ImageData,
    *,
    seconds: Mapping[str, float],
    device: torch.device,
    precision: str,
    hash_: str,
) -> Path:
    """The files of one probe, the result last."""
    split = data.evaluated_on

    def scores(row: Mapping[str, float]) -> dict[str, float]:
        return {"epoch": row["epoch"]} | {
            key.removeprefix(f"{split}/"): value for key, value in row.items() if key.startswith(f"{split}/")
        }

    parameters = record.count(one.network)
    features = one.network.shapes(data.size).pooled
    assert features is not None
    result = {
        "format": 1,
        "kind": "probe",
        "status": "finished",
        "names": job["names"],
        "variant": job["variant"],
        "seed": job["seed"],
        "epochs": job["recipe"]["epochs"],
        "evaluated_on": split,
        "best": scores(max(rows, key=lambda row: row[f"{split}/top1"])),
        "last": scores(rows[-1]),
        "teacher": None,
        "probe": {
            "protocol": job["protocol"],
            "features": features,
            "trained_on": one.trained_on,
            "source": record.file_name(job["source"]["weights"]) if one.file else None,
            "source_hash": job["source"]["hash"],
            "source_seed": one.seed,
            "size": data.size,
            "training_images": len(data.labels),
        },
        "parameters": {
            "student": parameters,
            "deployed": parameters,
            "extra": (features + 1) * data.num_classes,
        },
        "seconds": round(sum(seconds.values()), 1),
        "seconds_of": dict(seconds),
        "images_per_second": None,
        "precision": precision,
        "device": record.device_name(device),
        "versions": record.versions(),
        "commit": record.commit(),
        "hash": hash_,
    }
    folder = _new_folder(place, job["seed"])
    record.write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(job)))
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    record.write_text(folder / METRICS, table.getvalue())
    record.write_json(folder / RESULT, result)
    return folder


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
