"""Linear probes of several networks, from a command line to a table."""

import copy
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from distill.analysis.store import find_results
from distill.analysis.table import group, markdown
from distill.build import build
from distill.data.base import ImageData
from distill.errors import UserError
from distill.numerics import choose_precision, flush_denormals
from distill.probe import Images, LinearProbe, Recipe
from distill.run import config as settings
from distill.run.check import check_keys, check_recipe
from distill.run.config import Config, device_of
from distill.run.named import ALONE, Named, named_networks, of_node
from distill.run.parts import build_data
from distill.run.probed import SIZE, finished, images_in, job_of, write

log = logging.getLogger("distill")

OF_A_PROBE = (*("networks", "data", "trained_on", "student", "recipe", "probe", "trainer", "seed", "output", "names"),)
SAID = 4  # lines of progress in each training of a classifier


@dataclass(frozen=True)
class Call:
    """What all networks of a call share."""

    protocol: LinearProbe
    recipe: Recipe
    data: ImageData
    images: Images
    output: Path
    device: torch.device
    precision: str


def probe(cfg: DictConfig) -> list[Path]:
    """Probe the networks that a command line names, write their results, and print them as a table.

    Returns:
        The folder of each probe, those found finished included.

    Raises:
        UserError: For every mistake in the command line, before the first network looks at an image.
    """
    flush_denormals()
    config = settings.resolve(_without_student(cfg))
    check_keys(config, OF_A_PROBE, "the configuration", "")
    recipe, seeds = _recipe(config["recipe"]), _seeds(config["seed"])
    protocol = build(config["probe"], what="probe")
    if not isinstance(protocol, LinearProbe):
        raise UserError(f"probe._target_={config['probe']['_target_']} is no distill.probe.LinearProbe.")
    device = device_of(config["trainer"])
    precision, _ = choose_precision(config["trainer"]["precision"], device)
    networks = _networks(cfg, config)
    for one in networks:
        check_pooled(one, config["data"]["size"])
    data, name = build_data(config), config["names"]["data"]
    images = Images(data.train_dataloader, data.plain_dataloader(), data.val_dataloader())
    call = Call(protocol, recipe, data, images, Path(config["output"]), device, precision)
    adapted = [
        replace(one, network=protocol.adapted(one.network, data=name, mean=data.mean, std=data.std)) for one in networks
    ]
    log.info("%s, protocol %s, precision %s", _about(data, name), config["names"]["protocol"], precision)
    common: dict[str, Any] = {"images": images_in(data), "overrides": list(HydraConfig.get().overrides.task)}
    folders: list[Path] = []
    for one in adapted:
        jobs = [job_of(one, config, seed=seed, **common) for seed in seeds or [one.seed or 0]]
        folders += _probe_one(one, jobs, call)
    rows, notes = group(find_results(folders)[0])
    print("\n" + markdown(rows, notes), end="")
    return folders


def _probe_one(one: Named, jobs: list[Config], call: Call) -> Iterator[Path]:
    """Of each job the folder: those that are finished are left alone, the others share the features."""
    title = one.student if one.distiller == ALONE else f"{one.teacher} → {one.student}, {one.distiller}"
    split, epochs_of, looked = call.data.evaluated_on, None, 0.0
    for job in jobs:
        if (found := finished(job, call.output)) is not None:
            log.info("%s, seed %d: finished already, see %s", title, job["seed"], found)
            yield found
            continue
        since = time.monotonic()
        if epochs_of is None:
            epochs_of = call.protocol.features(one.network, call.images, device=call.device, precision=call.precision)
            looked = time.monotonic() - since
            if not call.protocol.augment:
                log.info("%s: features computed once, in %.0f s", title, looked)
            since = time.monotonic()
        rows = []
        for row in call.protocol.fit(
            epochs_of(job["seed"]),
            call.recipe,
            num_classes=call.data.num_classes,
            name=one.catalogue,
            seed=job["seed"],
            split=split,
        ):
            rows.append(row)
            if len(rows) % max(1, call.recipe.epochs // SAID) == 0:
                log.info("%s, seed %d: epoch %d, top-1 %.2f", title, job["seed"], len(rows), row[f"{split}/top1"])
        yield write(
            job,
            rows,
            one,
            call.data,
            call.output,
            seconds={"features": looked, "classifier": time.monotonic() - since},
            precision=call.precision,
            device=call.device,
        )


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
    check_recipe(node)
    if node["accumulate"] != 1:
        raise UserError("recipe.accumulate must be 1: a batch of features always fits.")
    schedule = build(node["schedule"], what="recipe.schedule")
    return Recipe(schedule=schedule, **{key: node[key] for key in ("epochs", "batch_size", "lr", "weight_decay")})


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
