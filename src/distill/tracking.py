"""Weights & Biases, imported only when chosen."""

import os
import secrets
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

ID_FILE = "wandb_id.txt"


def run_id(folder: Path) -> str:
    """One id for the life of a run's folder, so that a resumed run goes on with its curves."""
    file = folder / ID_FILE
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    return file.read_text().strip()


def open_run(
    *,
    folder: Path,
    config: dict[str, Any],
    names: dict[str, str],
    variant: str,
    seed: int,
    split: str,
    project: str,
    entity: str | None,
    tags: list[str],
    mode: str,
) -> WandbLogger:
    """Start, or go on with, the run that belongs to a folder.

    Args:
        folder: The run's folder; also where an offline run is kept.
        config: The resolved configuration.
        names: Of data, teacher, student and distiller.
        variant: The settings in which this run differs from its cell's defaults.
        seed: The run's.
        split: Prefix of the scores, whose best and last become the run's summary.
        project: W&B project.
        entity: W&B team or user; None for the default.
        tags: Beside the names.
        mode: "auto" (online where there is a key), "online", "offline".
    """
    import wandb

    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    method = f"{names['distiller']} {variant}".strip()
    logger = WandbLogger(
        project=project,
        entity=entity,
        name=f"{method} {names['teacher']}-{names['student']} seed {seed}",
        group=f"{names['data']} {names['teacher']}-{names['student']} {method}"[:128],
        tags=[*(names[key][:64] for key in ("data", "teacher", "student", "distiller")), *tags],
        id=run_id(folder),
        resume="allow",
        save_dir=folder,
        mode=mode,
        config=config,
    )
    run = logger.experiment
    run.define_metric("epoch")
    for score, best in (("top1", "max"), ("top5", "max"), ("nll", "min"), ("ece", "min"), ("agreement", "max")):
        run.define_metric(f"{split}/{score}", summary=f"{best},last")
    if mode == "offline":
        wandb.termlog(f"recording offline; send it later with: wandb sync {Path(run.dir).parent}")
    return logger


def close_run() -> None:
    """Finish the open run: the next job of a sweep would otherwise write into it."""
    import wandb

    wandb.finish()
