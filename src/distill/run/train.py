"""One training run, from a command line to its files."""

import fcntl
import inspect
import json
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import SIGTERMException

from distill import launch, record
from distill.build import build
from distill.checkpoint import AtomicIO
from distill.compiled import NextStep, compile_student
from distill.errors import UserError
from distill.files import CONFIG, LAST, RESULT
from distill.keeper import Keeper
from distill.module import Distillation
from distill.numerics import mix, share_of_threads
from distill.progress import Progress, StepLog
from distill.run import config as settings
from distill.run.check import OF_PRECISION, check
from distill.run.config import Config, device_of, rows_of_a_batch, world_of
from distill.run.finish import finish
from distill.run.parts import Prepared, prepare
from distill.run.pictures import show

log = logging.getLogger("distill")
SEARCHED = "A search would be judged on the test set: keep a part of the training set for it, data.holdout=5000 say."
# its notices at every start (hardware found and not found, an advertisement) say nothing of the run
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
# what we log is over all ranks already
warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\(.*sync_dist=True")


def train(cfg: DictConfig) -> float:
    """One run from a command line: train, evaluate, write; or go on with the run of `resume`.

    Returns:
        Last top-1 in percent, for sweepers.

    Raises:
        UserError: For every mistake that can be seen before the first step, and for a loss that is not finite.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    overrides = list(hydra.overrides.task)
    config = settings.resumed(cfg, overrides) if cfg.resume else settings.resolve(cfg)
    if "optuna" in str(hydra.sweeper) and not config["data"].get("holdout"):
        raise UserError(SEARCHED)
    if not cfg.resume:
        config["variant"] = record.variant(overrides)
    return carry_out(config, folder)


def carry_out(config: Config, folder: Path) -> float:
    """The run that a resolved configuration describes, in a folder: begun, gone on with, or found finished.

    Returns:
        Last top-1 in percent.

    Raises:
        UserError: As `train`.
    """
    if (folder / RESULT).exists():
        result = json.loads((folder / RESULT).read_text())
        log.info("%s is finished: last top-1 %.2f", folder, result["last"]["top1"])
        return float(result["last"]["top1"])
    check(config)
    config["hash"] = record.fingerprint(config)  # of its weights as they are now
    device = device_of(config["trainer"])
    world = world_of(config["trainer"], device)
    if launch.rank() != 0:
        return _fit(config, folder, prepare(config, folder))
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        record.write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
        prepared = prepare(config, folder)  # a user's mistake is said once, before there are ranks
        if world > 1 and not launch.started_by_another():
            with launch.ranks(world, folder), share_of_threads(world):
                return _fit(config, folder, prepared)
        return _fit(config, folder, prepared)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder: two sweeps that were begun at once would write one run's checkpoints in turn.

    Raises:
        UserError: If another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"Another process is training in {folder}: wait for it, or end it.") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


def train_rank(folder: Path) -> None:
    """What every further rank of a run does."""
    config = settings.plain(OmegaConf.load(folder / CONFIG))
    logging.disable(logging.INFO)
    with share_of_threads(world_of(config["trainer"], device_of(config["trainer"]))):
        _fit(config, folder, prepare(config, folder))


def build_loggers(config: Config, folder: Path, split: str) -> list[Any]:
    """Lightning loggers: every node of the group that has a `_target_`, told of the run what its signature asks for."""
    if launch.rank() != 0:
        return []
    facts = {"folder": folder, "config": config, "split": split}
    facts |= {key: config[key] for key in ("names", "variant", "seed")}
    loggers = []
    for key, node in config["logger"].items():
        if not isinstance(node, dict):
            continue
        wanted = inspect.signature(get_object(node["_target_"])).parameters if "_target_" in node else ()
        about = {name: fact for name, fact in facts.items() if name in wanted}
        opened = build({**node, "_partial_": True}, what=f"logger.{key}", given=tuple(about))
        try:
            loggers.append(opened(**about))
        except ImportError as error:
            raise UserError(f"logger={key} needs a package that is not installed: {error}.") from error
    return loggers


@dataclass(frozen=True)
class Assembled:
    """A run that is ready for its first step."""

    trainer: pl.Trainer
    module: Distillation
    keeper: Keeper
    loggers: list[Any]


def assemble(config: Config, folder: Path, parts: Prepared) -> Assembled:
    """Join the parts of a run with the training loop, its callbacks and its loggers."""
    recipe, every = config["recipe"], config["trainer"]["log_every_n_steps"]
    if parts.compiled:
        compile_student(
            parts.student,
            rows=rows_of_a_batch(config, parts.device),
            size=parts.data.size,
            precision=parts.precision,
            device=parts.device,
        )
    torch.manual_seed(mix(config["seed"], "run"))
    module = Distillation(
        student=parts.student,
        teacher=parts.asked,
        deployed=parts.deployed,
        distiller=parts.distiller,
        spec=parts.spec,
        optimizer=build({**config["optimizer"], "_partial_": True}, what="optimizer", given=("params",)),
        schedule=build(recipe["schedule"], what="recipe.schedule"),
        accumulate=recipe["accumulate"],
        seed=config["seed"],
        split=parts.data.evaluated_on,
        teacher_predictions=parts.teacher_predictions,
    )
    keeper = Keeper(
        folder,
        minutes=config["checkpoint"]["minutes"],
        steps=config["checkpoint"]["steps"],
        epochs=config["checkpoint"].get("epochs", 1),
        metrics_csv=config["logger"]["metrics_csv"],
        check_every=every,
    )
    loggers = build_loggers(config, folder, parts.data.evaluated_on)
    callbacks: list[pl.Callback] = [Progress(every=every), keeper, *([NextStep()] if parts.compiled else [])]
    if loggers:
        callbacks.append(StepLog(every=every))
    return Assembled(_trainer(config, parts, folder, callbacks, loggers), module, keeper, loggers)


def _fit(config: Config, folder: Path, parts: Prepared) -> float:
    run = assemble(config, folder, parts)
    last = folder / LAST
    if last.exists():
        log.info("going on from %s", last)
    try:
        run.trainer.fit(run.module, datamodule=parts.data, ckpt_path=str(last) if last.exists() else None)
        if dist.is_initialized():
            dist.destroy_process_group()
        if not run.trainer.is_global_zero:
            return run.keeper.last["top1"]
        parts.data.trainer = None  # from here on one process reads the whole of it
        top1 = finish(config, folder, parts, run.keeper)
        show(run.loggers, folder, parts)
        return top1
    except SIGTERMException as stop:  # by itself it would end the process as if all were well
        log.info("stopped by SIGTERM: python src/train.py resume=%s goes on", folder)
        raise SystemExit(128 + signal.SIGTERM) from stop
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        if any("wandb" in type(logger).__module__ for logger in run.loggers):
            from distill.tracking import close_run

            close_run()


def _trainer(
    config: Config, parts: Prepared, folder: Path, callbacks: list[pl.Callback], loggers: list[Any]
) -> pl.Trainer:
    node = {k: v for k, v in config["trainer"].items() if k not in OF_PRECISION}
    make = build({**node, "_partial_": True}, what="trainer")
    try:
        trainer: pl.Trainer = make(
            precision=parts.precision,
            max_epochs=config["recipe"]["epochs"],
            accumulate_grad_batches=config["recipe"]["accumulate"],
            default_root_dir=folder,
            callbacks=callbacks,
            logger=loggers,
            plugins=[AtomicIO()],
            use_distributed_sampler=False,  # our loaders shard themselves
            inference_mode=False,  # its tensors cannot enter a matmul with a gradient
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"The trainer refuses its settings: {error}") from error
    return trainer
