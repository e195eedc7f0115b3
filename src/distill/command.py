"""What the entry scripts share; imports no torch, so that --help and Tab answer at once."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from distill import zoo
from distill.data.layout import classes_in
from distill.errors import UserError
from distill.gpus import side_by_side, take_gpu
from distill.mistake import BEFORE_A_JOB, sentence
from distill.release import release

T = TypeVar("T")

LONGEST_NAME = 120
FULL_ERROR = "HYDRA_FULL_ERROR"


def scaled(value: Any, *, _root_: DictConfig) -> Any:
    """Milestones and warm-ups of a recipe, shrunk to fewer epochs than its full length, never stretched to more."""
    recipe = _root_.recipe
    factor = min(1.0, recipe.epochs / recipe.full_epochs)
    if isinstance(value, list | ListConfig):
        return [v * factor for v in value]
    return value * factor


def of_data(numbers: Mapping[str, Any], otherwise: Any, *, _root_: DictConfig) -> Any:
    """The number that belongs to the data set of a run: `${of_data:{imagenet:0.09},0.075}`.

    For what knows of no pair of networks and of no recipe, as an optimizer.
    """
    return numbers.get(_root_.names.data, otherwise)


def folder_name(text: str) -> str:
    """What ran, as a folder name: `distiller=kd,seed=1` to `distiller-kd_seed-1`.

    Every file system takes it, and the command line takes it back unquoted (`resume=...`), where "=" and "," mean
    something else.
    """
    name = re.sub(r"[^\w.+-]+", "_", text.replace("=", "-"), flags=re.ASCII).strip("._-") or "default"
    if len(name) <= LONGEST_NAME:
        return name
    # two long names that differ late must not meet
    import hashlib

    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def method_name(choices: Mapping[str, Any], place: str = "distiller") -> str:
    """What a method is called: `kd` as it was chosen; with methods in it that were chosen by themselves, after those.

    A wrapper of one is named by both, `lskd+dkd`; one of several by these alone, in alphabetical order: `crd+kd`.

    Args:
        choices: Hydra's, by group and package: {"distiller": "lskd", "distiller@distiller.host": "dkd"}.
        place: Where the method stands.
    """
    group = "distiller" if place == "distiller" else f"distiller@{place}"
    inner = [key.partition("@")[2] for key in choices if key.startswith(f"distiller@{place}.")]
    # of lskd within sum the host is no part of the sum
    direct = [name for name in inner if not any(name.startswith(f"{other}.") for other in inner)]
    parts = sorted(method_name(choices, part) for part in direct)
    return "+".join(parts if len(parts) > 1 else [str(choices[group]), *parts])


def offer() -> None:
    """Register networks and resolvers, and let `-cd FOLDER` bring its own Python modules."""
    zoo.offer()
    # Hydra copies its sources at every question to them, this singleton with all networks included: --help took seconds
    setattr(ConfigStore, "__deepcopy__", lambda self, memo: self)  # noqa: B010
    OmegaConf.register_new_resolver("scaled", scaled, replace=True)
    OmegaConf.register_new_resolver("of_data", of_data, replace=True)
    OmegaConf.register_new_resolver("classes_in", classes_in, replace=True)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("method_name", method_name, replace=True)
    OmegaConf.register_new_resolver("either", lambda first, second: first or second, replace=True)
    for flag, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, _, attached = flag.partition("=")
        if name in ("-cd", "--config-dir"):
            sys.path.insert(0, str(Path(attached or value).resolve()))


def composed(conf: Path, script: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration that a command line of an entry script composes, for whoever wants it without running it.

    Args:
        conf: Folder of the configuration.
        script: Name of its file there, "train" say.
        overrides: As on the command line.
    """
    offer()
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        cfg = compose(script, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def answer(main: Callable[[], Any]) -> None:
    """Run an entry script's `main`; a mistake in the command line is said in one sentence, without a traceback.

    `HYDRA_FULL_ERROR=1` in the environment shows the traceback all the same.
    """
    if os.environ.get(FULL_ERROR) == "1":
        main()
        return
    os.environ[FULL_ERROR] = "1"  # Hydra raises its errors then, instead of printing them its way
    try:
        main()
    except UserError:
        sys.exit(1)  # said by `speak`, when its job of a sweep ended
    except BEFORE_A_JOB as error:
        print(sentence(error), file=sys.stderr)
        sys.exit(1)
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):
            raise
        print("A group takes a name, not null: to have no teacher, write teacher=none.", file=sys.stderr)
        sys.exit(1)
    finally:
        os.environ.pop(FULL_ERROR, None)


def speak(run: Callable[[], T]) -> T:
    """Run a job, and say a user's mistake in its one sentence, without a traceback; a sweep goes on with the next."""
    several = HydraConfig.get().mode == RunMode.MULTIRUN
    if several:
        take_gpu(HydraConfig.get().launcher)
    try:
        return run()
    except UserError as error:
        text = " ".join(str(error).split())
        print(text if text.endswith((".", "?")) else f"{text}.", file=sys.stderr)
        if several:
            raise
        sys.exit(1)
    except SystemExit as end:  # told to stop
        if several and side_by_side(HydraConfig.get().launcher):
            # joblib takes any exception for a result, and would give this process the next run
            logging.shutdown()
            sys.stdout.flush()
            os._exit(int(end.code or 0))
        raise
    except Exception:
        if several:  # where it happened: what is carried to the sweep's end has lost it
            traceback.print_exc()
        raise
    finally:
        if several:
            release(sys.exception())
