"""Accuracy over epochs (the paper's Figure 3): a line per method, the mean over seeds with their spread as a band."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from distill.analysis.figures import style
from distill.analysis.store import Result, read_curve
from distill.analysis.table import Row
from distill.errors import UserError

LONG = 30  # epochs from which the end is shown again
LABEL = 0.052  # height of a label's line as a share of the axes


@dataclass(frozen=True)
class Curve:
    """Top-1 of one method.

    Attributes:
        label: Method and variant.
        seeds: How many runs.
        epochs: Those that all of them have, ascending.
        mean: Over seeds, in percent.
        low: Mean less the standard deviation over seeds; the mean itself for one seed.
        high: Likewise, more.
    """

    label: str
    seeds: int
    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def curves_of(rows: Iterable[Row]) -> list[Curve]:
    """A curve for each row that has one, from the metrics.csv beside its results; the highest end comes first."""
    found = []
    for row in rows:
        runs = [curve for run in row.runs if (curve := read_curve(run))]
        if not runs:
            continue
        epochs = sorted(set.intersection(*(set(curve) for curve in runs)))
        values = [[curve[epoch] for curve in runs] for epoch in epochs]
        mean = [fmean(each) for each in values]
        spread = [stdev(each) if len(each) > 1 else 0.0 for each in values]
        low = [m - s for m, s in zip(mean, spread, strict=True)]
        high = [m + s for m, s in zip(mean, spread, strict=True)]
        if epochs:
            found.append(Curve(row.label, len(runs), epochs, mean, low, high))
    return sorted(found, key=lambda curve: -curve.mean[-1])


def accuracy_curves(results: Iterable[Result], path: str | Path) -> list[Curve]:
    """Draw top-1 over epochs.

    Args:
        results: Runs of one data set, pair, number of epochs and split.
        path: The picture; .png, .pdf or .svg.

    Returns:
        What was drawn.

    Raises:
        UserError: If there are no runs with a metrics.csv, or they are of several pairs, or the format is unknown.
    """
    style.check(Path(path))
    rows = style.one_pair(results)
    curves = curves_of(rows)
    if not curves:
        raise UserError("None of these runs has a metrics.csv with a row per epoch.")
    last = max(curve.epochs[-1] for curve in curves)
    start = last - last // 4 + 1
    with mpl.rc_context(style.FONTS):
        figure = style.new(style.PAGE, max(3.0, 0.8 + 0.2 * len(curves)))
        if last >= LONG:  # where the rate has fallen, methods differ by little: that part is shown again, larger
            whole, end = figure.subplots(1, 2, width_ratios=(1.25, 1))
            _lines(whole, curves, 1)
            _lines(end, curves, start)
            end.set_title(f"from epoch {start} on", loc="left")
            end.set_ylabel("")
        else:
            end = figure.subplots()
            _lines(end, curves, 1)
        _name(end, curves)
        seeds = {curve.seeds for curve in curves}
        said = "one seed each" if seeds == {1} else "mean over seeds, band: standard deviation"
        figure.suptitle(f"{style.about(rows)}; {said}")
        style.save(figure, path)
    return curves


def _lines(axes: Axes, curves: list[Curve], first: int) -> None:
    """All curves from one epoch on, in the range of what is seen."""
    for place, curve in enumerate(curves):
        colour = style.COLOURS[place % len(style.COLOURS)]
        axes.plot(
            curve.epochs,
            curve.mean,
            color=colour,
            linestyle=style.STYLES[place % len(style.STYLES)],
            marker=style.MARKERS[place % len(style.MARKERS)],
            # few marks, and not at the same epochs for all
            markevery=(place % 5, max(1, (curve.epochs[-1] - first) // 6)) if len(curve.epochs) > 12 else None,
            markersize=4,
            linewidth=1.3,
        )
        axes.fill_between(curve.epochs, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    seen = [
        (low, high)
        for curve in curves
        # the first tenth is steep and much alike: leaving it out makes room for what differs
        for epoch, low, high in zip(curve.epochs, curve.low, curve.high, strict=True)
        if epoch >= max(first, curve.epochs[-1] / 10)
    ]
    floor, ceiling = min(low for low, _ in seen), max(high for _, high in seen)
    room = 0.04 * max(ceiling - floor, 1.0)
    axes.set_ylim(floor - room, ceiling + room)
    last = max(curve.epochs[-1] for curve in curves)
    margin = 0.02 * max(last - first, 1)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 (%)")
    style.clean(axes, "both")


def _name(axes: Axes, curves: list[Curve]) -> None:
    """Labels at the lines' ends instead of a legend, in the same order, each tied to its line."""
    low, high = axes.get_ylim()
    gap = LABEL * (high - low) * 3.4 / style.height_of(axes)
    heights = style.apart([curve.mean[-1] for curve in curves], gap, high=high)
    several = any(curve.seeds > 1 for curve in curves)
    for place, (curve, height) in enumerate(zip(curves, heights, strict=True)):
        count = f" (n={curve.seeds})" if several else ""
        axes.annotate(
            f"{curve.label}{count}  {curve.mean[-1]:.2f}",
            (curve.epochs[-1], curve.mean[-1]),
            xytext=(1.09, (height - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": style.COLOURS[place % len(style.COLOURS)],
                "linestyle": style.STYLES[place % len(style.STYLES)],
                "linewidth": 1.0,
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )
