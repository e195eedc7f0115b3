"""How time and memory of a step grow with the queue, the classes and the batch, for every method.

python scripts/growth.py --threads 1 --json growth.json
python scripts/growth.py --device cuda --methods mcld distiller.queue_dtype=bfloat16

A step is a method's forward, its gradient down to the student's logits, and its update, on random logits: networks take
no part. One size grows at a time, the others stay at the base. A queue is full before the clock starts. Memory is what
the method, its state and its steps add at their highest to a process that has done one small step of the same method:
on a CPU the process's largest resident size, in a process per point; on a GPU what torch allocated.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tqdm import tqdm

from distill import command
from distill.errors import UserError
from distill.mistake import BEFORE_A_JOB, sentence

CONF = Path(__file__).resolve().parents[1] / "conf"
SHARE = 0.6  # of the free memory that a queue may take
WRITTEN_AT_ONCE = 2**17  # numbers, while a queue is filled: small beside a step
FEWEST, MOST, SECONDS = 3, 20, 2.0  # steps per point, and when to stop between
MB = 1e6


@dataclass(frozen=True)
class Sizes:
    """One point: entries of a queue (or samples, for methods without one), classes and rows of a batch."""

    queue_length: int
    classes: int
    batch: int


BASE = Sizes(49_984, 100, 64)
GROWTH = {
    "queue_length": (1_024, 4_096, 16_384, 49_984, 131_072, 524_288, 1_281_167),
    "classes": (10, 100, 1_000, 5_000, 21_841),
    "batch": (16, 64, 256, 1_024, 4_096),
}
SMALL = Sizes(64, 10, 8)
SMALL_GROWTH = {"queue_length": (64, 100_000), "classes": (10, 20), "batch": (4, 8)}

Node = dict[str, Any]


# --- what to measure ------------------------------------------------------------------------------------------------


def nodes_of(names: list[str], overrides: list[str]) -> dict[str, Node]:
    """The methods' configurations, as `src/train.py distiller=NAME` composes them.

    Raises:
        UserError: If a name or an override is unknown.
    """
    command.offer()
    nodes = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in names:
            try:
                cfg = compose("train", overrides=[f"distiller={name}", *overrides])
            except BEFORE_A_JOB as error:
                raise UserError(sentence(error)) from error
            nodes[name] = OmegaConf.to_container(cfg.distiller, resolve=True)
    return nodes


def unsuitable(node: Node) -> str | None:
    """Why random logits are not enough for a method."""
    from hydra.utils import get_class

    from distill.distillers import Distiller

    method: Any = get_class(node["_target_"])
    if method.needs != "logits":
        return "reads feature maps"
    if method.views != 1 or (method.observe, method.prepare) != (Distiller.observe, Distiller.prepare):
        return "asks the networks itself"
    return None


def points(base: Sizes, growth: dict[str, tuple[int, ...]], node: Node) -> Iterator[tuple[str, Sizes]]:
    """Which size grows, and all sizes; the queue's length where there is such an option."""
    for grows, values in growth.items():
        if grows != "queue_length" or grows in node:
            for value in values:
                yield grows, replace(base, **{grows: value})


def too_large(node: Node, sizes: Sizes, free: int) -> str | None:
    """Why a point is left out."""
    if "queue_length" not in node:
        return None
    needed = sizes.queue_length * sizes.classes * (2 if node.get("queue_dtype") == "bfloat16" else 4)
    if needed <= SHARE * free:
        return None
    return f"a queue of {needed / MB:,.0f} MB is more than {SHARE:.0%} of the {free / MB:,.0f} MB that are free"


def free_memory(device: str) -> int:
    """Bytes that are free on the machine, and on the GPU that is used."""
    import torch

    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:  # not Linux
        import os

        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(free, torch.cuda.mem_get_info()[0]) if device == "cuda" else free


# --- one point ------------------------------------------------------------------------------------------------------


def stepper(node: Node, sizes: Sizes, device: str) -> tuple[Any, Callable[[], float]]:
    """A method whose queue is full, and what does one step with it and gives its milliseconds."""
    import torch

    from distill.build import build_distiller
    from distill.types import Batch, Output, Shapes, Spec, Step

    generator = torch.Generator().manual_seed(0)
    shapes = Shapes(sizes.classes)
    labels = torch.randint(sizes.classes, (sizes.queue_length,), generator=generator)
    spec = Spec(shapes, shapes, sizes.classes, sizes.queue_length, labels, sizes.batch)
    if "queue_length" in node:
        node = {**node, "queue_length": sizes.queue_length}
    method = build_distiller(node, spec, seed=0).to(device)

    def step_of(index: Any) -> Step:
        logits = 3 * torch.randn(2, len(index), sizes.classes, generator=generator)
        student, teacher = logits.to(device).unbind()
        batch = Batch(torch.empty(0), labels[index], index).to(torch.device(device))
        return Step(batch, Output(student.clone().requires_grad_()), Output(teacher), epoch=1, step=0)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def once() -> float:
        step = step_of(torch.randint(sizes.queue_length, (sizes.batch,), generator=generator))
        wait()
        start = time.perf_counter()
        torch.stack(list(method(step).values())).sum().backward()
        method.update(step)
        wait()
        return 1e3 * (time.perf_counter() - start)

    if "queue_length" in node:
        for index in torch.arange(sizes.queue_length).split(max(1, WRITTEN_AT_ONCE // sizes.classes)):
            method.update(step_of(index))
    return method, once


def measure(node: Node, sizes: Sizes, device: str, threads: int | None) -> dict[str, Any]:
    """Milliseconds of several steps of one method, and bytes: of its state, and at their highest.

    The highest is that of this process since it began, so that on a CPU each point needs a process of its own.
    """
    import torch

    from distill.numerics import flush_denormals

    flush_denormals()
    if threads:
        torch.set_num_threads(threads)
    try:
        # code that is loaded with its first use, and what allocators and libraries keep for themselves
        stepper(node, SMALL, device)[1]()
        before = highest(device, reset=True)
        method, once = stepper(node, sizes, device)
        once()
        end, milliseconds = time.perf_counter() + SECONDS, [once() for _ in range(FEWEST)]
        while time.perf_counter() < end and len(milliseconds) < MOST:
            milliseconds.append(once())
    except (UserError, torch.OutOfMemoryError) as error:
        return {"skipped": str(error).splitlines()[0]}
    low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    state = sum(t.numel() * t.element_size() for t in (*method.parameters(), *method.buffers()))
    times = {"median": median, "low": low, "high": high, "milliseconds": milliseconds}
    return {**times, "state_bytes": state, "peak_bytes": highest(device) - before}


def highest(device: str, *, reset: bool = False) -> int:
    """Bytes in use at the highest so far, on a GPU since the last reset."""
    import torch

    if device == "cuda":
        if reset:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def alone(*arguments: Any) -> dict[str, Any]:
    """`measure` in a process of its own, which starts with everything imported."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            return pool.submit(measure, *arguments).result()
    except BrokenProcessPool:
        return {"skipped": "the process was killed, as when memory runs out"}


# --- what to say ----------------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]], grows: str, base: Sizes) -> str:
    """The points along one size, in Markdown."""
    others = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in asdict(base).items() if k != grows)
    name = grows.replace("_", " ")
    lines = [
        f"### Growing {name} ({others})\n",
        f"| method | {name} | ms per step | quartiles | peak MB | of it state |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for point in results:
        if point["grows"] != grows:
            continue
        cells = [point["method"], f"{point[grows]:,}"]
        if reason := point.get("skipped"):
            cells += [f"skipped: {reason}", "", "", ""]
        else:
            cells += [f"{point['median']:,.2f}", f"{point['low']:,.2f} – {point['high']:,.2f}"]
            cells += [f"{point[key] / MB:,.1f}" for key in ("peak_bytes", "state_bytes")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("overrides", nargs="*", help="values of the methods, as for src/train.py")
    result.add_argument("--methods", help="some of conf/distiller, with commas between them (all)")
    result.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where (cpu)")
    result.add_argument("--threads", type=int, help="of the CPU (as torch chooses)")
    result.add_argument("--json", type=Path, help="also write all numbers there")
    result.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not what it costs")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    options = parser().parse_args(arguments)
    names = options.methods.split(",") if options.methods else sorted(p.stem for p in CONF.glob("distiller/*.yaml"))
    base, growth = (SMALL, SMALL_GROWTH) if options.quick else (BASE, GROWTH)

    import torch

    from distill.record import device_name, versions, write_json

    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: this machine offers no CUDA device.", file=sys.stderr)
        return 1
    try:
        nodes = nodes_of(names, options.overrides)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    left_out = {name: reason for name, node in nodes.items() if (reason := unsuitable(node))}
    plan = [
        (name, grows, sizes)
        for name, node in nodes.items()
        if name not in left_out
        for grows, sizes in points(base, growth, node)
    ]
    tqdm.monitor_interval = 0  # its thread would not survive in the processes of `alone`
    results = []
    for name, grows, sizes in (bar := tqdm(plan, disable=None)):
        bar.set_description(f"{name}, {grows} {getattr(sizes, grows):,}")
        if reason := too_large(nodes[name], sizes, free_memory(options.device)):
            found: dict[str, Any] = {"skipped": reason}
        else:
            run = alone if options.device == "cpu" else measure
            found = run(nodes[name], sizes, options.device, options.threads)
        results.append({"method": name, "grows": grows, **asdict(sizes), **found})

    if options.threads:
        torch.set_num_threads(options.threads)
    device = device_name(torch.device(options.device))
    print(f"{device}; torch {torch.__version__}\n")
    for grows in growth:
        print(table(results, grows, base))
    for name, reason in left_out.items():
        print(f"Left out: {name}, which {reason}.")
    if options.json:
        about = {"device": device, "versions": versions(), "overrides": options.overrides, "base": asdict(base)}
        write_json(options.json, {**about, "left_out": left_out, "points": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
