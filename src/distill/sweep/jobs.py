"""The runs of a sweep: what each is, where it lies, and how far it has come."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict

from distill.analysis.store import find_results
from distill.command import folder_name
from distill.errors import UserError
from distill.files import CONFIG, LAST, METRICS, RESULT
from distill.record import fingerprint, variant
from distill.run import config as settings
from distill.run.config import Config

State = Literal["finished", "begun", "new"]
KEEP = "teacher.keep"
HASH = re.compile(r"^hash: '?([0-9a-f]+)'?$", re.MULTILINE)


@dataclass
class Job:
    """One run.

    Attributes:
        words: Its command line.
        config: Resolved; None where that fails, which the run itself will say.
        hash: Of the configuration.
        folder: Where it lies, or will.
        state: How far it is.
    """

    words: list[str]
    config: Config | None
    hash: str | None
    folder: Path
    state: State = "new"

    @property
    def finished(self) -> bool:
        """Whether there is a result, by now."""
        return (self.folder / RESULT).exists()

    @property
    def epochs_done(self) -> int:
        """Of a run that was begun; those after its last checkpoint included."""
        path = self.folder / METRICS
        return max(0, len(path.read_text().splitlines()) - 1) if self.state == "begun" and path.exists() else 0

    def command(self) -> list[str]:
        """Its command line with its folder."""
        place = {"hydra.sweep.dir": self.folder.parent, "hydra.sweep.subdir": self.folder.name}
        return [*self.words, *(quoted(key, str(value)) for key, value in place.items())]


def quoted(key: str, text: str) -> str:
    """A word of a command line that Hydra reads, whatever characters the value has."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{text}"'


class Composer:
    """Composes command lines as the launcher will.

    Args:
        context: Hydra's.
        master: Configuration of the sweep.
        named: Whether a run lies where its name says (data, networks, method, hash), so that every sweep finds it
            there; otherwise in a folder of this sweep, numbered.
    """

    def __init__(self, context: HydraContext, master: DictConfig, *, named: bool) -> None:
        self.context = context
        self.master = master
        self.named = named
        self.count = 0

    def job(self, words: Sequence[str]) -> Job:
        """The run of a command line, as if it were new."""
        cfg = self._composed(words)
        number, self.count = self.count, self.count + 1
        before = HydraConfig.instance().cfg
        try:
            with open_dict(cfg):
                cfg.hydra.job.num, cfg.hydra.job.id = number, number
            HydraConfig.instance().set_config(cfg)
            root = Path(self.master.hydra.sweep.dir)
            default = root / str(cfg.hydra.sweep.subdir)
            with open_dict(cfg):
                del cfg["hydra"]
            if cfg.get("resume"):
                return Job(list(words), None, None, default)
            try:
                config = settings.resolve(cfg)
            except UserError:
                return Job(list(words), None, None, default)
        finally:
            HydraConfig.instance().cfg = before
        without = [word for word in words if not word.lstrip("+").startswith(f"{KEEP}=")]
        if self.named and len(without) < len(words) and not _can_keep(config):
            self.count = number
            return self.job(without)
        config["variant"] = variant(words)
        found = fingerprint(config)
        return Job(list(words), config, found, root / name_of(config, found) if self.named else default)

    def _composed(self, words: Sequence[str]) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.master, list(words))


def _can_keep(config: Config) -> bool:
    """Whether the method reads nothing of its teacher but logits."""
    if (config.get("teacher") or {}).get("keep", "off") == "off":
        return True
    needs: str = getattr(get_object(config["distiller"]["_target_"]), "needs", "logits")
    return needs == "logits"


def name_of(config: Config, found: str) -> Path:
    """Where a run of a table lies: what a person looks for it by, and its hash."""
    names, recipe = config["names"], config["recipe"]
    what = f"{recipe['epochs']}_epochs_seed{config['seed']}_{found[:8]} {config['variant']}"
    parts = (names["data"], f"{names['teacher']}-{names['student']}", names["distiller"], what)
    return Path(*(folder_name(part) for part in parts))


def look_up(folder: Path) -> dict[str, tuple[State, Path]]:
    """Finished and half-finished runs below a folder, by their hashes.

    Results without their configuration beside them are evidence of another machine's runs, and count as none.
    """
    found: dict[str, tuple[State, Path]] = {}
    for path in sorted(folder.rglob(CONFIG)):
        place = path.parent
        saved = HASH.search(path.read_text())
        if (place / RESULT).exists():
            results, _ = find_results([place / RESULT])
            if results and results[0].hash:
                found[results[0].hash] = "finished", place
        elif saved and (place / LAST).exists():
            found.setdefault(saved[1], ("begun", place))
    return found


def placed(jobs: Sequence[Job], known: dict[str, tuple[State, Path]]) -> list[Job]:
    """The runs without those that are another's double, in the folders where they are found."""
    unique: dict[Any, Job] = {}
    for job in jobs:
        if job.hash is not None and job.hash in known:
            job.state, job.folder = known[job.hash]
        unique.setdefault(job.hash or id(job), job)
    return list(unique.values())


def searched(master: DictConfig) -> Path:
    """Where runs are looked for before they are begun."""
    if look_in := OmegaConf.select(master, "sweep.look_in"):
        return Path(look_in)
    return Path(master.hydra.sweep.dir) if has_a_folder(master) else Path("outputs")


def has_a_folder(master: DictConfig) -> bool:
    """Whether the command names the sweep's folder."""
    return any(str(word).startswith("hydra.sweep.dir=") for word in master.hydra.overrides.hydra)
