"""A search for a method's numbers: Optuna proposes them, runs on a part of the training set judge them.

A search can be stopped and repeated: what was proposed and how it was judged lies in a file beside the runs, and a
trial that was under way is proposed again, so that its run goes on. Proposals depend on the judged trials alone: a
search that was stopped ends as one that was not.
"""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from distill.errors import UserError
from distill.record import write_json
from distill.run.train import SEARCHED
from distill.sweep.estimate import estimate
from distill.sweep.jobs import Composer, look_up, placed, searched
from distill.sweep.rows import expand
from distill.sweep.stop import passed_on
from distill.sweep.table import own_words, reason, then

STUDY = "study.json"
FORMAT = 1


@dataclass
class Study:
    """What was tried.

    Attributes:
        path: Where it is kept.
        space: What is searched, in Hydra's words, by key.
        direction: "maximize" or "minimize".
        trials: In the order of their proposal: "params", and "value", None until they are judged.
    """

    path: Path
    space: dict[str, str]
    direction: str
    trials: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, space: dict[str, str], direction: str) -> Self:
        """The study of a folder, new where there is none.

        Raises:
            UserError: If it is of another space.
        """
        if not path.exists():
            return cls(path, space, direction)
        content = json.loads(path.read_text())
        if (content["space"], content["direction"]) != (space, direction):
            was = " ".join(f"{key}={value}" for key, value in content["space"].items())
            raise UserError(f"{path} is of another search ({content['direction']} over {was}): name another folder.")
        return cls(path, space, direction, content["trials"])

    def save(self) -> None:
        """Write, whole or not at all."""
        content = {"format": FORMAT, "direction": self.direction, "space": self.space, "trials": self.trials}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, content)

    @property
    def judged(self) -> list[dict[str, Any]]:
        """Trials that have ended."""
        return [trial for trial in self.trials if trial["value"] is not None]

    @property
    def best(self) -> dict[str, Any]:
        """The trial of the best value; of equals the first."""
        sign = -1 if self.direction == "maximize" else 1
        return min(self.judged, key=lambda trial: sign * trial["value"])

    def propose(self, sampler: Mapping[Any, Any], distributions: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """The next trials: first those that were proposed before and not judged.

        Args:
            sampler: Node of an Optuna sampler, whose seed is the search's.
            distributions: Optuna's, by key.
            count: How many.
        """
        import optuna

        found = [trial for trial in self.trials if trial["value"] is None][:count]
        study = optuna.create_study(direction=self.direction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            for trial in self.judged:
                params = trial["params"]
                past = optuna.trial.create_trial(params=params, distributions=distributions, value=trial["value"])
                study.add_trial(past)
        while len(found) < count:
            settings = dict(sampler)
            if settings.get("seed") is not None:
                settings["seed"] += len(self.trials)  # however many this process drew before
            study.sampler = instantiate(settings)
            drawn = study.ask(distributions).params
            found.append({"params": {key: _digits(value) for key, value in drawn.items()}, "value": None})
            self.trials.append(found[-1])
        return found


def search(
    context: HydraContext,
    master: DictConfig,
    launcher: Launcher,
    words: Sequence[str],
    *,
    direction: Any,
    n_trials: int,
    n_jobs: int,
    max_failure_rate: float,
    params: Mapping[str, str] | None,
    **unused: Any,
) -> float:
    """Carry a search out, or on.

    Args:
        context: Hydra's.
        master: Configuration of the search; its `table` says what all trials have in common.
        launcher: Carries the trials' runs out.
        words: Of the command line.
        direction: "maximize" or "minimize".
        n_trials: In all, those of earlier calls included.
        n_jobs: Trials at a time, whose proposals do not know of each other.
        max_failure_rate: Share of trials that may fail.
        params: What to search, each as Hydra writes sweeps: `interval(...)`, `tag(log, interval(...))`, `choice(...)`.
        unused: Further keys of `hydra/sweeper=optuna`, which must be null.

    Returns:
        The best value.

    Raises:
        UserError: If trials would be judged on the test set, the space cannot be searched, or too many failed.
    """
    try:
        import optuna
        from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
    except ImportError as error:
        raise UserError(f"A search needs what is not installed ({error}): pip install 'distill[sweep]'.") from error
    optuna.logging.set_verbosity(logging.WARNING)

    sampler = OmegaConf.to_container(master.hydra.sweeper.sampler)
    assert isinstance(sampler, dict)
    if strange := [key for key, value in unused.items() if value is not None and key != "sampler"]:
        raise UserError(f"hydra.sweeper.{strange[0]} is not read here: the study is {STUDY} in hydra.sweep.dir.")
    space, rest = _space(params or {}, own_words(words, table=True))
    common = expand(master.table.rows, master.table.get("each") or "", rest, loader=context.config_loader)
    if len(common) != 1:
        raise UserError(f"A search is of one run with other numbers, and these are {len(common)} runs.")
    composer = Composer(context, master, named=True)
    config = composer.job(common[0]).config
    if config is not None and not config["data"].get("holdout"):
        raise UserError(SEARCHED)
    common[0].append("score_test=false")

    texts = {key: str(override.input_line).partition("=")[2] for key, override in space.items()}
    study = Study.of(Path(master.hydra.sweep.dir) / STUDY, texts, getattr(direction, "name", direction))
    distributions = {key: create_optuna_distribution_from_override(override) for key, override in space.items()}
    print(f"{len(study.judged)} of {n_trials} trials are there, in {study.path}", flush=True)
    begun, failed = False, 0
    while (missing := n_trials - len(study.judged)) > 0:
        trials = study.propose(sampler, distributions, min(missing, n_jobs))
        study.save()
        jobs = [composer.job([*common[0], *(f"{k}={v}" for k, v in trial["params"].items())]) for trial in trials]
        known = look_up(searched(master))
        jobs = [placed([job], known)[0] for job in jobs]
        if not begun:
            print(estimate([jobs[0]] * missing, master), end="", flush=True)
            begun = True
        with passed_on(launcher):
            returned = launcher.launch([job.command() for job in jobs], initial_job_idx=len(study.judged))
        reasons = [_judge(trial, ended) for trial, ended in zip(trials, returned, strict=True)]
        study.save()
        failed += sum(why is not None for why in reasons)
        if failed > max_failure_rate * n_trials:
            why = next(why for why in reasons if why is not None)
            raise UserError(f"More trials failed than hydra.sweeper.max_failure_rate={max_failure_rate} allows: {why}")
    best = study.best
    drawn = " ".join(f"{key}={value}" for key, value in best["params"].items())
    print(f"Best of {len(study.judged)} trials: {drawn} with {best['value']:.2f} on the held-out images")
    print(then(master, [], []), end="", flush=True)
    value: float = best["value"]
    return value


def _space(params: Mapping[str, str], words: Sequence[str]) -> tuple[dict[str, Override], list[str]]:
    """What to search, the command line's own before the experiment's, and the words that are fixed."""
    parser = OverridesParser.create()
    given = parser.parse_overrides(list(words))
    space = {key: parser.parse_override(f"{key}={text}") for key, text in params.items()}
    for override in given:
        if override.is_sweep_override():
            space[override.get_key_element()] = override
        else:
            space.pop(override.get_key_element(), None)
    if not space:
        raise UserError("There is nothing to search: say, for instance, 'distiller.temperature=interval(0.1, 1)'.")
    return space, [str(override.input_line) for override in given if not override.is_sweep_override()]


def _digits(value: Any) -> Any:
    """Four digits are enough for a number of a method, and for a name of a folder."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _judge(trial: dict[str, Any], returned: JobReturn) -> str | None:
    """Enter how a trial ended; or say why it failed."""
    if returned.status == JobStatus.FAILED:
        return reason(returned._return_value)
    trial["value"] = float(returned.return_value)
    return None
