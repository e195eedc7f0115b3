"""One pair of networks with one method on one device, measured in all variants."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill import record
from distill.answers import said, size_of
from distill.bench import report
from distill.bench.loops import Relay
from distill.bench.rounds import Rounds, keeping
from distill.bench.usual import Usual
from distill.errors import UserError
from distill.numerics import choose_precision
from distill.run.config import Config
from distill.run.parts import Prepared, prepare
from distill.run.train import assemble

LEAST = 20  # steps of a block that means something


def measure(
    config: Config,
    folder: Path,
    *,
    blocks: int,
    steps: int,
    profiled: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a run.

    Args:
        config: As `settings.ready` gives it.
        folder: The one that was made ready.
        blocks: Of each variant.
        steps: Of each block.
        profiled: Whether to add torch's profile of one more block of the real path.
        say: Tells the user how it goes.

    Returns:
        Raw times, what `report.summary` makes of them, and what was measured, as plain data.

    Raises:
        UserError: As a run would, or if the benchmark cannot measure it.
    """
    prepared = prepare(config, folder)
    notes: list[str] = []
    kept = None
    try:
        kept = keeping(prepared, asked=prepared.distiller.needs_teacher)
    except UserError as error:
        notes.append(f"(d) is left out: {error}")
    if kept is not None:
        notes.append(f"(d) keeps up to {said(size_of(*kept.answers.rows.shape))} of answers, as views are met.")
    relay = None if prepared.asked is None else Relay(prepared.asked)
    usual = Usual(prepared, config["optimizer"])
    rounds = Rounds(
        prepared=prepared,
        relay=relay,
        kept=kept,
        usual=usual,
        optimizer=config["optimizer"],
        blocks=blocks,
        steps=steps,
        laps=max(1, steps // 4),
        profiled=profiled,
        say=say,
    )
    run = assemble(config, folder, dataclasses.replace(prepared, asked=relay))
    run.trainer.callbacks.insert(0, rounds)  # type: ignore[attr-defined]
    try:
        run.trainer.fit(run.module, datamodule=prepared.data)
        whole, seen = len(prepared.data.val_dataloader()), int(sum(run.trainer.num_val_batches))
    finally:
        usual.close()
    return {
        "format": 1,
        **facts(config, prepared),
        "distiller": config["names"]["distiller"],
        "blocks": blocks,
        "steps": steps,
        "steps_per_epoch": len(prepared.data.train_dataloader()),
        **report.summary(rounds.blocks, rounds.laps),
        "epoch_end": {
            "validation": rounds.validation * whole / seen,
            "validation_batches": [seen, whole],
            "saving": rounds.saving,
        },
        "memory": None,
        "startup": None,
        "notes": notes,
        "raw": {"blocks": report.plain(rounds.blocks), "laps": report.plain(rounds.laps)},
        "profile": rounds.profile,
    }


def facts(config: Config, prepared: Prepared) -> dict[str, Any]:
    """Where and what was measured."""
    weights = record.file_name((config.get("teacher") or {}).get("weights"))
    return {
        "pair": f"{config['names']['teacher']} → {config['names']['student']}",
        "data": config["names"]["data"],
        "batch_size": prepared.data.batch_size,
        "teacher_weights": "random" if weights == "random_teacher.safetensors" else weights,
        "kind": prepared.device.type,
        "device": record.device_name(prepared.device),
        "precision": prepared.precision,
        "why": choose_precision(config["trainer"]["precision"], prepared.device)[1],
        "threads": torch.get_num_threads(),
        "versions": record.versions(),
        "commit": record.commit(),
    }
