"""What a run's student and teacher answer to the test set, kept beside its results for Figures 4 and 6."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from distill.answers import half
from distill.build import channels_last, freeze
from distill.checkpoint import save_safetensors
from distill.data.base import ImageData
from distill.deploy import load
from distill.errors import UserError
from distill.files import CONFIG, FEATURES, STUDENT
from distill.numerics import autocast, choose_precision, flush_denormals
from distill.run import config as settings
from distill.run.config import device_of
from distill.run.parts import build_data, build_one
from distill.types import Batch, Output

log = logging.getLogger("distill")


@torch.no_grad()
def answers_of(
    network: nn.Module, batches: Iterable[Batch], *, device: torch.device, precision: str, limit: int | None
) -> dict[str, Tensor]:
    """A network's logits and penultimate features, in eval mode.

    Args:
        network: Answers images in [0, 1] with `Output`.
        batches: Of a split, in its order.
        device: Where to run; the network is moved there.
        precision: As `choose_precision` returns it.
        limit: The first images only; None for all.

    Returns:
        logits (images, classes) and features (images, channels), float16, by `Batch.index`; labels (images,) and index
        (images,). Without features where the network does not show them.
    """
    network.eval().to(device)
    rows: dict[str, list[Tensor]] = {"logits": [], "features": [], "labels": [], "index": []}
    count = 0
    for batch in batches:
        batch = batch.to(device)
        with autocast(precision, device):
            output: Output = network(batch.images)
        rows["logits"].append(half(output.logits.float()).cpu())
        if output.pooled is not None:
            rows["features"].append(half(output.pooled.float().flatten(1)).cpu())
        rows["labels"].append(batch.labels.cpu())
        rows["index"].append(batch.index.cpu())
        count += len(batch.labels)
        if limit is not None and count >= limit:
            break
    found = {name: torch.cat(parts)[:limit] for name, parts in rows.items() if parts}
    order = found["index"].argsort()
    return {name: rows[order] for name, rows in found.items()}


def keep_answers(
    folder: Path,
    data: ImageData,
    networks: Mapping[str, nn.Module],
    *,
    device: torch.device,
    precision: str,
    limit: int | None,
) -> Path:
    """Ask networks about the test set, and write what they say with the names of the classes.

    Args:
        folder: The run's.
        data: Whose test images they are.
        networks: "student" and, where there is one, "teacher".
        device: As `answers_of`.
        precision: As `answers_of`.
        limit: As `answers_of`.

    Returns:
        The file.
    """
    answers = {
        who: answers_of(network, data.test_dataloader(), device=device, precision=precision, limit=limit)
        for who, network in networks.items()
    }
    labels = answers["student"]["labels"]
    assert all(torch.equal(other["labels"], labels) for other in answers.values())
    tensors = {
        f"{who}.{name}": found[name].contiguous()
        for who, found in answers.items()
        for name in ("logits", "features")
        if name in found
    }
    tensors["labels"] = labels.int()
    about = json.dumps({"split": "test", "precision": precision})
    save_safetensors(tensors, folder / FEATURES, {"classes": json.dumps(list(data.class_names)), "about": about})
    return folder / FEATURES


def observe_run(
    folder: Path, *, limit: int | None = None, root: str | None = None, teacher_weights: str | None = None
) -> Path:
    """Ask the student and the teacher of a finished run about the test set, and keep what they say.

    Args:
        folder: The run's, with its config.yaml and student.safetensors.
        limit: The first images only; None for all.
        root: Where the data lies, if not where the run found it.
        teacher_weights: The teacher's file, if it was moved.

    Returns:
        The file that was written.

    Raises:
        UserError: If the folder lacks a file, or data or weights are gone.
    """
    for name in (STUDENT, CONFIG):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has neither {FEATURES} nor {name}: give the folder in which the run was trained."
            )
    flush_denormals()
    config = settings.plain(OmegaConf.load(folder / CONFIG))
    if root is not None:
        config["data"]["root"] = root
    if teacher_weights is not None and config.get("teacher"):
        config["teacher"]["weights"] = teacher_weights
    device = device_of(config["trainer"])
    precision, _ = choose_precision(config["trainer"]["precision"], device)
    data = build_data(config)
    networks = {"student": channels_last(load(folder))}
    if config.get("teacher"):
        networks["teacher"] = freeze(build_one(config, "teacher"))
    log.info("asking %s of %s", " and ".join(networks), folder)
    return keep_answers(folder, data, networks, device=device, precision=precision, limit=limit)
