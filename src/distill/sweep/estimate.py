"""How long a sweep will take on this device, from steps that are really trained."""

import json
import math
import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill import record
from distill.errors import UserError
from distill.gpus import side_by_side, visible
from distill.quiet import quiet
from distill.release import release
from distill.run.config import Config
from distill.sweep.jobs import Job
from distill.sweep.measure import Cost, measure

KEPT = ".costs.json"  # what was measured before, below the folder of the runs
SHARE = 0.03  # of the time that all runs take, that measuring may: then no further methods of a measured pair
Measure = Callable[[Config, int, int], Cost | int]


def estimate(jobs: Sequence[Job], master: DictConfig) -> str:
    """Say how long the runs of a sweep will take, one after the other.

    Of runs that differ in nothing but seeds and sizes of numbers one is measured; of many pairs and many methods each
    pair and, where the sweep is long, each method once, and the others follow from them.

    Args:
        jobs: Those that are not finished.
        master: Configuration of the sweep: its `sweep.estimate` is the number of steps to measure.
    """
    steps = master.sweep.estimate
    known = [job for job in jobs if job.config is not None]
    if not steps or not known:
        return ""
    kinds: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in known:
        assert job.config is not None
        kinds[kind_of(job.config)].append(job)
    kept = Kept(Path(master.hydra.sweep.dir) / KEPT)
    costs: dict[tuple[str, str], Cost] = {}
    lines, short, began = [], 0, time.perf_counter()
    with quiet(), measuring(master) as ask:
        for kind in representatives(list(kinds)):
            config = kinds[kind][0].config
            assert config is not None
            cost: Cost | int | None = kept.get(kind)
            if cost is None:
                if guess(kind, costs) and time.perf_counter() - began > SHARE * total(kinds, costs)[0]:
                    continue
                print(f"measuring {what(config)} ...", flush=True)
                try:
                    cost = ask(config, steps, sum(left(job) for job in kinds[kind]))
                except Exception as error:  # the run itself will say it at length
                    lines.append(f"  {what(config)} cannot be measured: {_first_sentence(error)}")
                    continue
            if isinstance(cost, int):
                short += cost
                continue
            costs[kind] = cost
            kept.put(kind, cost)
            lines.append(f"  {what(config)}: {said(cost)}")
    if not costs:
        lines += [f"Some {short:,} steps: too few to be worth an estimate."] if short else []
        return "".join(f"{line}\n" for line in lines)
    hours, unknown = total(kinds, costs)
    device = next(iter(costs.values())).device
    lines.append(f"About {duration(hours)} on this device ({device}), one run after the other.")
    if unknown:
        lines.append(f"{unknown} runs are not in it.")
    return "".join(f"{line}\n" for line in lines)


# ---------------------------------------------------------------------- kinds of runs


def kind_of(config: Config) -> tuple[str, str]:
    """What decides the cost of a run's step: data and networks, and the method."""
    names, data, trainer = config["names"], dict(config["data"]), dict(config["trainer"])
    for key in ("root", "seed", "download"):
        data.pop(key, None)
    teacher, student = (
        {k: v for k, v in (config.get(n) or {}).items() if k != "weights"} for n in ("teacher", "student")
    )
    pair = [names["data"], names["teacher"], names["student"], data, teacher, student, trainer]
    pair += [config["recipe"]["batch_size"], config["recipe"]["accumulate"]]
    method = [_shape(config["distiller"]), config["optimizer"]["_target_"]]
    return json.dumps(pair, sort_keys=True, default=str), json.dumps(method, sort_keys=True, default=str)


def _shape(node: Any) -> Any:
    """A method's node, where of a number it matters only whether it is 0: what has no weight is not computed."""
    if isinstance(node, dict):
        return {key: _shape(value) for key, value in node.items()}
    return node != 0 if isinstance(node, float) else node


def representatives(kinds: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of every pair and of every method one."""
    found: list[tuple[str, str]] = []
    for pair, method in kinds:
        if pair not in {p for p, _ in found} or method not in {m for _, m in found}:
            found.append((pair, method))
    return found


def guess(kind: tuple[str, str], costs: dict[tuple[str, str], Cost]) -> Cost | None:
    """What a run costs: as measured, or as its pair does, more or less by what its method does to another pair."""
    if kind in costs:
        return costs[kind]
    pair, method = kind
    of_pair = {m: cost for (p, m), cost in costs.items() if p == pair}
    if not of_pair:
        return None
    for (other, m), cost in costs.items():
        for shared, own in of_pair.items():
            if m == method and (other, shared) in costs:
                factor = cost.batch / costs[other, shared].batch
                return replace(own, batch=own.batch * factor, known=own.known * factor)
    return next(iter(of_pair.values()))


# ---------------------------------------------------------------------- sums


def left(job: Job) -> int:
    """Epochs that a run has before it."""
    assert job.config is not None
    epochs: int = job.config["recipe"]["epochs"]
    return max(0, epochs - job.epochs_done)


def total(kinds: dict[tuple[str, str], list[Job]], costs: dict[tuple[str, str], Cost]) -> tuple[float, int]:
    """Seconds that all runs take, and of how many nothing is known."""
    seconds, unknown = 0.0, 0
    asked: dict[tuple[str, Any], int] = {}  # epochs of a teacher's views that the runs before have asked for, per seed
    for kind, jobs in kinds.items():
        cost = guess(kind, costs)
        for job in jobs:
            assert job.config is not None
            if cost is None:
                unknown += 1
                continue
            epochs = left(job)
            fresh = _asked_afresh(job.config, cost, asked)
            steps = fresh * cost.batch + (1 - fresh) * cost.known
            seconds += cost.start + epochs * (cost.batches * steps + cost.evaluation)
    return seconds, unknown


def _asked_afresh(config: Config, cost: Cost, asked: dict[tuple[str, Any], int]) -> float:
    """Share of a run's views about which its teacher must be asked, if answers are kept; as if none were known yet."""
    keep = (config.get("teacher") or {}).get("keep", "off")
    if keep == "off" or cost.views is None:
        return 1.0
    epochs: int = config["recipe"]["epochs"]
    if keep == "memory":
        return _views(epochs, cost.views) / epochs
    teacher, seed = json.dumps(config["teacher"], sort_keys=True, default=str), config["seed"]
    before = sum(n for (name, _), n in asked.items() if name == teacher)
    new = max(0, epochs - asked.get((teacher, seed), 0))
    asked[teacher, seed] = max(epochs, asked.get((teacher, seed), 0))
    return (_views(before + new, cost.views) - _views(before, cost.views)) / epochs


def _views(epochs: int, views: int) -> float:
    """Different views of an image that so many epochs meet, on average."""
    return views * (1 - math.pow(1 - 1 / views, epochs))


# ---------------------------------------------------------------------- measuring


class Kept:
    """Costs that were measured before, on this chip and with this torch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.where = [record.chip(here), torch.get_num_threads(), torch.__version__]
        try:
            self.content: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            self.content = {}

    def _key(self, kind: tuple[str, str]) -> str:
        return record.short_hash([*kind, *self.where])

    def get(self, kind: tuple[str, str]) -> Cost | None:
        """What a kind of run costs, if it is known."""
        found = self.content.get(self._key(kind))
        return Cost(**found) if found else None

    def put(self, kind: tuple[str, str], cost: Cost) -> None:
        """Keep what was measured."""
        self.content[self._key(kind)] = asdict(cost)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record.write_json(self.path, self.content)


@contextmanager
def measuring(master: DictConfig) -> Iterator[Measure]:
    """What measures: this process, or a child where this one must not touch the GPUs that others are to have."""
    if not side_by_side(master.hydra.launcher) or not visible():
        yield _measure
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda *arguments: pool.submit(_measure, *arguments).result()


def _measure(config: Config, steps: int, epochs: int) -> Cost | int:
    try:
        return measure(config, steps=steps, epochs=epochs)
    finally:
        release(sys.exception())


# ---------------------------------------------------------------------- words


def what(config: Config) -> str:
    """A kind of run in words."""
    names = config["names"]
    pair = names["student"] if names["teacher"] == "none" else f"{names['teacher']} → {names['student']}"
    return f"{pair}, {names['distiller']} {config.get('variant', '')}".strip()


def said(cost: Cost) -> str:
    """A cost in words."""
    kept = f" ({1000 * cost.known:.0f} with known answers)" if cost.known != cost.batch else ""
    return (
        f"{1000 * cost.batch:.0f} ms a step{kept}, {cost.batches:,} steps and {cost.evaluation:.1f} s of evaluation an"
        f" epoch, {cost.start:.0f} s to begin"
    )


def duration(seconds: float) -> str:
    """As a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:200]}"
