"""What a method costs against what it gives (the paper's Figure 5): time per batch and accuracy."""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from distill.analysis.figures import style
from distill.analysis.store import Result
from distill.analysis.table import Row
from distill.errors import UserError

BATCH = 64  # images; the published recipe's
# where a label may stand around its point, near before far; in points
FAR = (9, 15, 24, 36, 50)
TURNS = (90, 270, 45, 315, 135, 225, 0, 180, 20, 340, 160, 200)
PER_POINT = 0.5  # square pixels of a covered neighbour that a label takes rather than stand so much further off
WIDER = 12  # methods, from which on each makes the picture higher
CUT = "; ranges that leave the picture are cut"


@dataclass(frozen=True)
class Cost:
    """One method.

    Attributes:
        label: Method and variant.
        milliseconds: Of one training step.
        low: Of several measurements, the shortest; None where there is but one.
        high: The longest.
        top1: Ours in percent, mean over seeds of the best epochs.
        sd: Over seeds; None for fewer than two.
    """

    label: str
    milliseconds: float
    low: float | None
    high: float | None
    top1: float
    sd: float | None


def read_speed(path: str | Path) -> list[dict[str, Any]]:
    """What `scripts/bench.py` measured of several methods on one pair, an entry per pair and device.

    Raises:
        UserError: If the file does not hold that.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text())
        entries = [entry for entry in entries if "reference" in entry and "milliseconds" in entry]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give what scripts/bench.py wrote.") from error
    if not entries:
        raise UserError(f"{path} holds no times per method: they come from scripts/bench.py with several --distiller.")
    found: list[dict[str, Any]] = entries
    return found


def measured(rows: Iterable[Row], entry: dict[str, Any]) -> list[Cost]:
    """Our accuracies beside the times of a benchmark, in which methods took turns on one machine."""
    found = []
    for row in rows:
        time = entry["milliseconds"].get(row.label)
        if time is not None:
            found.append(_cost(row, time["median"], time["low"], time["high"]))
    return found


def as_trained(rows: Iterable[Row]) -> list[Cost]:
    """Our accuracies beside the throughput of the same runs, for a batch of 64 images."""
    return [
        _cost(row, 1000 * BATCH / rate, None, None) for row in rows if (rate := row.images_per_second.mean) is not None
    ]


def _cost(row: Row, milliseconds: float, low: float | None, high: float | None) -> Cost:
    best = row.best("top1")
    assert best.mean is not None
    return Cost(row.label, milliseconds, low, high, best.mean, best.sd)


def accuracy_over_time(results: Iterable[Result], path: str | Path, *, speed: str | Path | None) -> list[Cost]:
    """Draw accuracy over the time of a training step.

    Args:
        results: Runs of one data set, pair, number of epochs and split.
        path: The picture; .png, .pdf or .svg.
        speed: What `scripts/bench.py` measured of this pair. None: the throughput of the runs themselves, which
            only compares them if each had the machine to itself.

    Returns:
        What was drawn.

    Raises:
        UserError: If there is nothing to draw, runs are of several pairs, the benchmark has another pair, or the format
            is unknown.
    """
    style.check(Path(path))
    rows = style.one_pair(results)
    if speed is None:
        costs = as_trained(rows)
        axis = f"ms per batch of {BATCH} images, from the runs' own throughput (machines may have been shared)"
    else:
        pair = next((row.pair for row in rows if row.teacher != "none"), rows[0].pair)
        entries = read_speed(speed)
        entry = next((one for one in entries if one["pair"] == pair and one["data"] == rows[0].data), None)
        if entry is None:
            known = ", ".join(sorted({f"{one['data']}, {one['pair']}" for one in entries}))
            raise UserError(f"{speed} holds no times of {rows[0].data}, {pair}, but of {known}.")
        costs = measured(rows, entry)
        axis = (
            f"ms per training step of {entry['batch_size']} images, median and range of {entry['blocks']} blocks of "
            f"{entry['steps']} steps\n{entry['device']}, {entry['precision']}"
        )
    if not costs:
        raise UserError("None of these runs' methods has a time per batch.")
    with mpl.rc_context(style.FONTS):
        figure = style.new(style.PAGE * 0.85, 3.5 + 0.1 * max(0, len(costs) - WIDER))
        axes = figure.subplots()
        cut = _points(axes, costs)
        axes.set_xlabel(axis + CUT * cut)
        axes.set_ylabel("best top-1 (%)")
        axes.set_title(style.about(rows), loc="left")
        figure.draw_without_rendering()  # labels are placed by what is on the page
        _labels(axes, costs)
        style.save(figure, path)
    return costs


def _points(axes: Axes, costs: Sequence[Cost]) -> bool:
    """Draw them; whether a range is longer than the axis, which one disturbed measurement must not stretch."""
    for place, cost in enumerate(costs):
        across = None if cost.low is None or cost.high is None else [
            [cost.milliseconds - cost.low], [cost.high - cost.milliseconds]
        ]  # fmt: skip
        axes.errorbar(
            [cost.milliseconds],
            [cost.top1],
            xerr=across,
            yerr=None if cost.sd is None else [cost.sd],
            fmt=style.MARKERS[place % len(style.MARKERS)],
            color=style.COLOURS[place % len(style.COLOURS)],
            ecolor="0.75",
            elinewidth=0.8,
            markersize=6,
            markeredgecolor="black",
            markeredgewidth=0.5,
        )
    axes.margins(0.12)
    style.clean(axes, "both")
    first, last = (end([cost.milliseconds for cost in costs]) for end in (min, max))
    margin = 0.12 * (last - first or last)
    axes.set_xlim(first - margin, last + margin)
    ends = [end for cost in costs for end in (cost.low, cost.high) if end is not None]
    return any(not first - margin <= end <= last + margin for end in ends)


def _labels(axes: Axes, costs: Sequence[Cost]) -> None:
    """Names beside the points, where they cover neither points nor each other, as far as that goes."""
    figure = axes.figure
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    places = axes.transData.transform([(cost.milliseconds, cost.top1) for cost in costs])
    half = 4 * figure.dpi / 72
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in places]
    frame = axes.get_window_extent(renderer)
    for number, cost in enumerate(costs):
        tried = []
        for far, turn in itertools.product(FAR, TURNS):
            x, y = far * math.cos(math.radians(turn)), far * math.sin(math.radians(turn))
            text = axes.annotate(
                cost.label,
                (cost.milliseconds, cost.top1),
                xytext=(x, y),
                textcoords="offset points",
                ha="center" if turn in (90, 270) else "left" if x > 0 else "right",
                va="center",
                fontsize=style.SMALL,
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
            )
            box = text.get_window_extent(renderer)
            others = [other for i, other in enumerate(taken) if i != number]
            covered = sum(_shared(box, other) for other in others) + (0 if _inside(box, frame) else 1e6)
            tried.append((covered + PER_POINT * far, text, box))
            text.set_visible(False)
            if covered == 0:
                break
        _, text, box = min(tried, key=lambda one: one[0])
        text.set_visible(True)
        taken.append(box)


def _shared(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)


def _inside(box: Bbox, frame: Bbox) -> bool:
    return bool(box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1)
