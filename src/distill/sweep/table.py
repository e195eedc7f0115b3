"""The runs of a table, or of any `-m`: those that are missing, in an order that fills all rows alike."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from distill.errors import UserError
from distill.sweep.estimate import estimate
from distill.sweep.jobs import Composer, Job, has_a_folder, look_up, placed, searched
from distill.sweep.rows import expand
from distill.sweep.stop import passed_on

log = logging.getLogger("distill")

ROOT, OF_ONE_SWEEP = "outputs", "outputs/sweeps/"
MANY = 50  # runs: their configurations take noticeable time, and a list of them is no longer read
NOT_OF_A_RUN = ("sweep.", "table.")


def carry_out(context: HydraContext, master: DictConfig, launcher: Launcher, words: Sequence[str]) -> list[Any]:
    """Run what a command line asks for and is not there yet.

    Args:
        context: Hydra's.
        master: Configuration of the sweep; its `table`, which experiments have, lists the runs.
        launcher: Carries the runs out.
        words: Of the command line.

    Returns:
        What the launcher returned.

    Raises:
        UserError: If a run failed, after all others have ended.
    """
    table = OmegaConf.to_container(master.table) if master.get("table") else None
    jobs = jobs_of(context, master, table, words)
    left = [job for job in jobs if job.state != "finished"]
    print(overview(jobs), flush=True)
    failures: dict[int, str] = {}
    returned: Sequence[JobReturn] = []
    if left:
        print(estimate(left, master), end="", flush=True)
        folder = Path(master.hydra.sweep.dir)
        if table is None:
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(master, folder / "multirun.yaml")
        returned, failures = launch(launcher, left)
    print(summary(jobs, left, failures), flush=True)
    print(then(master, jobs, words), end="", flush=True)
    if failures:
        raise UserError(f"{len(failures)} of {len(left)} runs failed.")
    return list(returned)


def jobs_of(context: HydraContext, master: DictConfig, table: Any, words: Sequence[str]) -> list[Job]:
    """All runs that a command line asks for, each once, and what is there of them.

    Raises:
        UserError: If the rows of the table cannot be read.
    """
    own = own_words(words, table=table is not None)
    if table is not None and not has_a_folder(master) and str(master.hydra.sweep.dir).startswith(OF_ONE_SWEEP):
        with open_dict(master):
            master.hydra.sweep.dir = ROOT
    rows, each = (table.get("rows") or [], table.get("each") or "") if table is not None else ([], "")
    lines = expand(rows, each, own, loader=context.config_loader)
    if len(lines) > MANY:
        print(f"reading the configurations of {len(lines)} runs ...", flush=True)
    composer = Composer(context, master, named=table is not None)
    found = [composer.job(line) for line in lines]
    return placed(found, look_up(searched(master)))


def own_words(words: Sequence[str], *, table: bool) -> list[str]:
    """A command line's words about the runs themselves; a run is the same whichever table lists it, or none."""
    others = (*NOT_OF_A_RUN, *(("experiment=",) if table else ()))
    return [word for word in words if not word.lstrip("+~").startswith(others)]


def then(master: DictConfig, jobs: Sequence[Job], words: Sequence[str]) -> str:
    """What to do with the runs, as the table says.

    In its words `{options}` stands for how scripts choose these runs, `{folders}` for their folders, `{list}` for the
    same with commas, and `{teacher}` for the one teacher they have, with its file where the command line names one.

    Args:
        master: Configuration of the sweep.
        jobs: All its runs.
        words: Of the command line.
    """
    text = OmegaConf.select(master, "table.then")
    if not text:
        return ""
    options = [str(master.hydra.sweep.dir)] if master.hydra.sweep.dir != ROOT else []
    pairs = {(job.config["names"]["teacher"], job.config["names"]["student"]) for job in jobs if job.config}
    taught = {pair for pair in pairs if pair[0] != "none"}
    if len(taught) == 1:
        options += [word for pair in zip(("--teacher", "--student"), *taught, strict=True) for word in pair]
    epochs, weights = (_last(words, key) for key in ("recipe.epochs", "teacher.weights"))
    options += ["--epochs", epochs] if epochs and "," not in epochs else []
    teachers = sorted({teacher + (f":{weights}" if weights else "") for teacher, _ in taught})
    folders = [str(job.folder) for job in jobs]
    known = {"{options}": " ".join(options), "{folders}": " ".join(folders)}
    known |= {"{list}": ",".join(folders), "{teacher}": ",".join(teachers)}
    for place, value in known.items():
        text = text.replace(place, value)
    return f"Now: {text}\n"


def _last(words: Sequence[str], key: str) -> str:
    """What a command line sets a key to, or nothing."""
    values = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    return values[-1] if values else ""


def overview(jobs: Sequence[Job]) -> str:
    """How many runs there are, and where the finished ones lie."""
    count = {state: sum(job.state == state for job in jobs) for state in ("finished", "begun", "new")}
    lines = [f"{len(jobs)} runs: {count['finished']} finished, {count['begun']} half-finished, {count['new']} to begin"]
    said = {"begun": "goes on", "finished": "finished"}
    for state in said if count["finished"] <= MANY else ("begun",):
        lines += [f"  {said[state]}: {job.folder}" for job in jobs if job.state == state]
    return "\n".join(lines)


def launch(launcher: Launcher, jobs: Sequence[Job]) -> tuple[Sequence[JobReturn], dict[int, str]]:
    """Carry runs out.

    Returns:
        What the launcher returned, and the reasons of those that failed by their place in `jobs`.
    """
    returned: Sequence[JobReturn] = []
    broken = "it did not end; its folder says how far it came"
    try:
        with passed_on(launcher):
            returned = launcher.launch([job.command() for job in jobs], initial_job_idx=0)
    except Exception as error:
        # of a process that was killed, say: the results that are there count all the same
        log.exception("the launcher stopped")
        broken = reason(error)
    failures = {}
    for place, job in enumerate(jobs):
        if place < len(returned) and returned[place].status == JobStatus.FAILED:
            failures[place] = reason(returned[place]._return_value)
        elif place >= len(returned) and not job.finished:
            failures[place] = broken
    return returned, failures


def reason(error: object) -> str:
    """Why a run failed, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def summary(jobs: Sequence[Job], left: Sequence[Job], failures: dict[int, str]) -> str:
    """How a sweep ended, with every failure and its reason."""
    done = len(left) - len(failures)
    lines = [f"{len(jobs)} runs: {len(jobs) - len(left)} were finished, {done} more are now, {len(failures)} failed"]
    for place, why in failures.items():
        lines += [f"  failed: {' '.join(left[place].words)}", f"    {why}"]
    if failures:
        lines.append(f"The same command tries {'it' if len(failures) == 1 else 'them'} again.")
    return "\n".join(lines)
