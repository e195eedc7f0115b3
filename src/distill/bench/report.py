"""From raw times to medians, ratios and shares, and to Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from statistics import median
from typing import Any

from distill.bench.loops import Block
from distill.bench.plain import Laps

NAMES = {
    "usual": "(a) usual recipe",
    "plain": "(b) plain loop",
    "real": "(c) this project",
    "kept": "(d) answers kept",
}
# name, dividend, divisor, and whether the time that the dividend waited for its loader counts
RATIOS = (
    ("a/c", "usual", "real", True),
    ("a/c without loader", "usual", "real", False),
    ("a/d", "usual", "kept", True),
    ("c/b", "real", "plain", True),
)
OF_PLAIN = ("teacher", "student", "loss", "optimizer")
SHARES = (*OF_PLAIN, "data", "framework")

Spread = dict[str, float]


def spread(values: Iterable[float]) -> Spread:
    """Median, lowest and highest."""
    ordered = sorted(values)
    return {"median": median(ordered), "low": ordered[0], "high": ordered[-1]}


def summary(blocks: Sequence[Block], laps: Sequence[Laps]) -> dict[str, Any]:
    """What blocks and laps say.

    Returns:
        "milliseconds" per step of each variant ("usual without loader" included), "ratios" of two variants in the same
        round, both with their spread over rounds, and "shares" of the real path's step, which sum to 1: the plain
        step's part of it (from blocks of one round) is divided as its laps are, "data" is a batch from the loader, and
        "framework" is what is left.
    """
    per_step = {(b.variant, b.round, True): 1e3 * b.seconds / b.steps for b in blocks}
    per_step |= {(b.variant, b.round, False): 1e3 * (b.seconds - b.waiting) / b.steps for b in blocks}
    rounds = sorted({b.round for b in blocks})

    def times(variant: str, loader: bool = True) -> list[float]:
        return [per_step[variant, r, loader] for r in rounds if (variant, r, loader) in per_step]

    milliseconds = {variant: spread(times(variant)) for variant in NAMES if times(variant)}
    milliseconds["usual without loader"] = spread(times("usual", loader=False))
    ratios = {
        name: spread(a / b for a, b in zip(times(over, loader), times(under), strict=True))
        for name, over, under, loader in RATIOS
        if times(under)
    }
    within = 1 / ratios["c/b"]["median"]
    parts = {name: median(getattr(lap, name) for lap in laps) for name in OF_PLAIN}
    shares = {name: within * seconds / sum(parts.values()) for name, seconds in parts.items()}
    shares["data"] = 1e3 * median(lap.data for lap in laps) / milliseconds["real"]["median"]
    shares["framework"] = 1 - within - shares["data"]
    return {"milliseconds": milliseconds, "ratios": ratios, "shares": shares}


def plain(records: Iterable[Block | Laps]) -> list[dict[str, Any]]:
    """Raw times as plain data."""
    return [{field.name: getattr(record, field.name) for field in fields(record)} for record in records]


# ---------------------------------------------------------------------- Markdown


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Tables of several results of `distill.bench.pair.measure`, and what their numbers mean."""
    first = results[0]
    title = f"{first['device']}, {first['precision']} ({first['why']}), torch {first['versions']['torch']};"
    title += f" {first['data']}, batch {first['batch_size']}"
    parts = [title, _speed(results), _shares(results), _costs(results), _notes(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def methods_markdown(result: dict[str, Any]) -> str:
    """The table of `distill.bench.methods.compare`."""
    peaks = {name: _largest(peak) / 2**20 for name, peak in (result["memory"] or {}).items()}
    rows = []
    for name in result["milliseconds"]:
        row = [name, _with_spread(result["milliseconds"][name]), _with_spread(result["over"][name], sign=True)]
        rows.append([*row, f"{peaks[name] - peaks[result['reference']]:+.0f}" if peaks else "–"])
    title = (
        f"{result['device']}, {result['precision']}, torch {result['versions']['torch']}: {result['pair']},"
        f" {result['data']}, batch {result['batch_size']}, plain loop, {result['blocks']} blocks of"
        f" {result['steps']} steps per method in turn; median (lowest to highest)"
    )
    reference = result["reference"]
    head = ["method", "ms per step", f"more than {reference} in the same round", f"peak MiB over {reference}"]
    return f"{title}\n\n{_table(head, rows)}\n"


def _speed(results: Sequence[dict[str, Any]]) -> str:
    head = ["pair", "method", *NAMES.values(), *(ratio for ratio, *_ in RATIOS)]
    rows = []
    for result in results:
        times, ratios = result["milliseconds"], result["ratios"]
        row = [result["pair"], result["distiller"]]
        row += [_with_spread(times[name]) if name in times else "–" for name in NAMES]
        row += [_with_spread(ratios[name], digits=2) if name in ratios else "–" for name, *_ in RATIOS]
        rows.append(row)
    return f"Milliseconds per step, and ratios of one round: median (lowest to highest).\n\n{_table(head, rows)}"


def _shares(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [result["pair"], result["distiller"], *(f"{100 * result['shares'][name]:.1f} %" for name in SHARES)]
        for result in results
    ]
    return f"Where the time of a step of (c) goes.\n\n{_table(['pair', 'method', *SHARES], rows)}"


def _costs(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        memory = result["memory"] or {}
        peaks = [memory.get(name) for name in NAMES]
        start, end = result["startup"], result["epoch_end"]
        rows.append(
            [
                *(result["pair"], result["distiller"]),
                *("–" if peak is None else f"{_largest(peak) / 2**30:.2f}" for peak in peaks),
                "–" if start is None else _start(start),
                f"{end['validation']:.1f} + {end['saving']:.2f}",
            ]
        )
    memory_heads = [f"GiB, {name}" for name in NAMES.values()]
    head = ["pair", "method", *memory_heads, "start-up, s", "validation + saving per epoch, s"]
    return f"Peak memory, start-up, and the end of an epoch.\n\n{_table(head, rows)}"


def _largest(peak: dict[str, Any]) -> int:
    size: int = peak["process"] if peak["device"] is None else peak["device"]
    return size


def _start(start: dict[str, float | None]) -> str:
    parts = [(name, start[name]) for name in ("imports", "preparation", "first step")]
    return f"{start['total']:.1f} ({', '.join(f'{name} {s:.1f}' for name, s in parts if s is not None)})"


def _notes(results: Sequence[dict[str, Any]]) -> str:
    first = results[0]
    notes = [
        f"{first['blocks']} blocks of {first['steps']} steps of each variant, in turn, in one process; each after a"
        " step that is not counted.",
        "(a) float32, eager, contiguous NCHW, torchvision transforms of PIL images in 2 worker processes; (b) this"
        " project's kernels on batches that lie on the device; (c) its training path with all callbacks and loggers;"
        " (d) the same, all answers found. Denormals are flushed and threads are as many in all of them.",
        '"Without loader" leaves out the time that (a) waits for its workers, not what they take from the cores.',
        "Validation and checkpoints lie outside the blocks; they are in the last table.",
        "Shares: what (b) takes of (c), divided as single steps of (b) are; the loader of (c); and the framework, which"
        " is what is left of (c).",
    ]
    if any(result["memory"] for result in results):
        notes.append(
            "Memory: highest during a few steps in a process of its own, "
            + ("of the device." if "cuda" in first["kind"] else "resident, libraries and data included, workers not.")
        )
    if any(result["startup"] for result in results):
        notes.append(
            "Start-up: from the start of the command to the checkpoint of its first step; its preparation builds data"
            " and networks and measures the teacher on the test set."
        )
    if stated := [result["pair"] for result in results if result["teacher_weights"] == "random"]:
        notes.append(f"Teachers with random weights, for want of a file or as asked for: {', '.join(stated)}.")
    notes += dict.fromkeys(note for result in results for note in result["notes"])
    return "\n".join(f"- {note}" for note in notes)


def _with_spread(values: Spread, *, digits: int = 1, sign: bool = False) -> str:
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{values['median']:{form}} ({values['low']:{form}} to {values['high']:{form}})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, [*("---" for _ in head)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
