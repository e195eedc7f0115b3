"""A picture of one pair of networks: accuracy per method, best and last epoch, and how it grew."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from distill.analysis.figures import style
from distill.analysis.figures.curves import Curve, curves_of
from distill.analysis.store import Result
from distill.analysis.table import Row, Stat

DARK, LIGHT = style.BLUE, style.ORANGE


def comparison(results: Sequence[Result], path: str | Path) -> None:
    """Draw the methods of one pair: best and last top-1 with their spread over seeds, and top-1 over epochs.

    Args:
        results: Runs of one data set, pair, number of epochs and split; runs of the student alone belong to its pair.
        path: The picture; its ending says the format (.png, .pdf, .svg).

    Raises:
        UserError: If there are no runs, or they are of several pairs, or the format is unknown.
    """
    style.check(Path(path))
    rows = style.one_pair(results)
    curves = [curve for curve in curves_of(rows) if len(curve.epochs) > 1]
    with mpl.rc_context(style.FONTS):
        width = style.PAGE if curves else style.PAGE * 0.62
        figure = style.new(width, max(2.6, 1.2 + 0.3 * len(rows)))
        axes = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
        _accuracies(axes[0], rows)
        if curves:
            _growth(axes[1], curves)
        figure.suptitle(style.about(rows))
        style.save(figure, path)


def _accuracies(axes: Axes, rows: list[Row]) -> None:
    """One line per method: a filled dot for the last epoch, a hollow one for the best."""
    for place, row in enumerate(rows):
        _dot(axes, row.last("top1"), place + 0.12, marker="o", color=DARK, face=DARK)
        _dot(axes, row.best("top1"), place - 0.12, marker="D", color=LIGHT, face="white")
    handles = [
        axes.plot([], [], "o", color=DARK, label="last epoch")[0],
        axes.plot([], [], "D", color=LIGHT, markerfacecolor="white", label="best epoch")[0],
    ]
    teacher = Stat.of(run.teacher_top1 for row in rows for run in row.runs).mean
    if teacher is not None:
        handles.append(axes.axvline(teacher, color=style.GREY, linestyle="--", label=f"teacher {teacher:.2f}"))
    axes.set_yticks(range(len(rows)), [f"{row.label} (n={len(row.runs)})" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("top-1 (%), whiskers: deviation over seeds")
    axes.margins(x=0.12)
    style.clean(axes, "x")
    axes.figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False)


def _dot(axes: Axes, stat: Stat, place: float, *, marker: str, color: str, face: str) -> None:
    assert stat.mean is not None
    axes.errorbar(
        [stat.mean],
        [place],
        xerr=None if stat.sd is None else [stat.sd],
        fmt=marker,
        color=color,
        markerfacecolor=face,
        capsize=2,
        markersize=4,
    )


def _growth(axes: Axes, curves: list[Curve]) -> None:
    for place, curve in enumerate(curves):
        axes.plot(
            curve.epochs,
            curve.mean,
            color=style.COLOURS[place % len(style.COLOURS)],
            linestyle=style.STYLES[place % len(style.STYLES)],
            linewidth=1.3,
            label=curve.label,
        )
    # the first tenth is steep and much alike: leaving it out makes room for what differs
    axes.set_ylim(bottom=min(min(curve.mean[len(curve.mean) // 10 :]) for curve in curves) - 1)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("top-1 (%), mean over seeds")
    style.clean(axes, "both")
    axes.legend(frameon=False, fontsize=style.SMALL, loc="lower right")
