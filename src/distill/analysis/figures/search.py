"""A search for one number: accuracy on the held-out images over its values, in the order they were tried."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from distill.analysis.figures import style
from distill.analysis.page import epochs
from distill.analysis.store import Result
from distill.analysis.table import method_of
from distill.errors import UserError

NEAR, HIGH = 0.03, 0.12  # of the axes: what a number takes above its point


@dataclass(frozen=True)
class Trial:
    """One value that was tried.

    Attributes:
        order: From 1, by when the trial ended.
        value: Of the searched number.
        top1: Best top-1 on the held-out images in percent, mean over seeds.
        seeds: How many runs.
    """

    order: int
    value: float
    top1: float
    seeds: int


def trials_of(results: Iterable[Result], parameter: str) -> tuple[list[Trial], str]:
    """The trials of one search in the order they ended, and what they have in common, in words.

    Args:
        results: Runs that were judged on held-out images; others, and runs without the parameter, are passed over.
        parameter: What was searched, as on the command line: "distiller.temperature".

    Raises:
        UserError: If there are no such runs, or they belong to several searches.
    """
    searches: dict[str, dict[float, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for run in results:
        method, variant = method_of(run)
        words = [word for word in variant.split(" ") if word]
        values = [word.split("=", 1)[1] for word in words if word.startswith(f"{parameter}=")]
        if run.evaluated_on != "holdout" or not values:
            continue
        rest = " ".join([method, *(word for word in words if not word.startswith(f"{parameter}="))])
        about = f"{run.data}, {run.teacher} → {run.student}, {rest}, {epochs(run.epochs)}"
        searches[about][_number(parameter, values[0])].append(run)
    if not searches:
        raise UserError(
            f"There is no finished run that was given {parameter} and judged on held-out images (data.holdout=5000)."
        )
    if len(searches) > 1:
        raise UserError(
            f"A picture shows one search, and there are several: {'; '.join(sorted(searches))}. "
            "Choose with --data, --teacher, --student, --epochs and --methods."
        )
    ((about, tried),) = searches.items()
    in_order = sorted(tried.items(), key=lambda item: min(run.written for run in item[1]))
    trials = [
        Trial(order, value, fmean(run.best.top1 for run in runs), len(runs))
        for order, (value, runs) in enumerate(in_order, start=1)
    ]
    return trials, about


def _number(parameter: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{parameter}={text} is no number, and cannot be drawn on an axis.") from None


def search_trials(results: Iterable[Result], path: str | Path, *, parameter: str) -> list[Trial]:
    """Draw the trials of one search, the best one marked.

    Args:
        results: As `trials_of`.
        path: The picture; .png, .pdf or .svg.
        parameter: As `trials_of`.

    Returns:
        What was drawn.

    Raises:
        UserError: As `trials_of`, or if the format is unknown.
    """
    style.check(Path(path))
    trials, about = trials_of(results, parameter)
    best = max(trials, key=lambda trial: trial.top1)
    values = [trial.value for trial in trials]
    with mpl.rc_context(style.FONTS):
        figure = style.new(style.PAGE * 0.72, 3.0)
        axes = figure.subplots()
        by_value = sorted(trials, key=lambda trial: trial.value)
        axes.plot([t.value for t in by_value], [t.top1 for t in by_value], color=style.PALE, linewidth=1, zorder=1)
        # early trials light, late ones dark, in a map that is even for all eyes and in grey; the numbers say it again
        shown = axes.scatter(
            values,
            [trial.top1 for trial in trials],
            c=[trial.order for trial in trials],
            cmap="cividis_r",
            vmin=0.5,
            vmax=len(trials) + 0.5,
            s=46,
            edgecolor="black",
            linewidth=0.6,
            zorder=2,
        )
        axes.scatter([best.value], [best.top1], s=170, facecolor="none", edgecolor="#D55E00", linewidth=1.6, zorder=3)
        below = _covered(trials)
        for trial in trials:
            axes.annotate(
                str(trial.order),
                (trial.value, trial.top1),
                xytext=(0, -6 if trial in below else 10 if trial is best else 6),
                textcoords="offset points",
                ha="center",
                va="top" if trial in below else "bottom",
                fontsize=style.SMALL,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
        axes.axvline(best.value, color="#D55E00", linestyle=":", linewidth=1)
        axes.margins(x=0.08, y=0.16)
        if min(values) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(parameter)
        axes.set_ylabel("best top-1 on held-out images (%)")
        style.clean(axes, "y")
        bar = figure.colorbar(shown, ax=axes, pad=0.02, ticks=[1, len(trials)])
        bar.set_label("trial, in the order they ended", labelpad=-4)
        bar.outline.set_visible(False)
        axes.set_title(f"{about}\nbest of {len(trials)}: {best.value:.4g}, {best.top1:.2f} %", loc="left")
        style.save(figure, path)
    return trials


def _covered(trials: list[Trial]) -> list[Trial]:
    """Those right above which another lies, so that their numbers would hide it."""
    scale: Callable[[float], float] = math.log if min(trial.value for trial in trials) > 0 else float
    places = [(scale(trial.value), trial.top1) for trial in trials]
    widths = [(max(axis) - min(axis)) or 1.0 for axis in zip(*places, strict=True)]

    def above(one: tuple[float, float], other: tuple[float, float]) -> bool:
        right, up = ((b - a) / width for a, b, width in zip(one, other, widths, strict=True))
        return abs(right) < NEAR and 0 < up < HIGH

    return [trial for trial, one in zip(trials, places, strict=True) if any(above(one, other) for other in places)]
