"""A picture of one pair of networks: accuracy per method, best and last epoch, and how it grew."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distill.analysis.store import Result, read_curve
from distill.analysis.table import Row, Stat, group
from distill.errors import UserError

# Okabe and Ito's colours, told apart by colour-blind eyes; line styles and markers tell them apart in grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
DARK, LIGHT, GREY = "#0072B2", "#E69F00", "#555555"


def comparison(results: Sequence[Result], path: str | Path) -> None:
    """Draw the methods of one pair: best and last top-1 with their spread over seeds, and top-1 over epochs.

    Args:
        results: Runs of one data set, pair, number of epochs and split; runs of the student alone belong to its pair.
        path: The picture; its ending says the format (.png, .pdf, .svg).

    Raises:
        UserError: If there are no runs, or they are of several pairs, or the format is unknown.
    """
    rows, _ = group(results)
    if not rows:
        raise UserError("There is no finished run to draw.")
    cells = sorted({(r.data, f"{r.epochs} epochs", r.evaluated_on, r.student) for r in rows})
    teachers = sorted({row.teacher for row in rows} - {"none"})
    if len(cells) > 1 or len(teachers) > 1:
        listed = "; ".join(sorted({f"{r.data}, {r.epochs} epochs, {r.evaluated_on}, {r.pair}" for r in rows}))
        raise UserError(
            f"A picture shows one pair of networks, and there are several: {listed}. "
            "Choose with --data, --teacher, --student, --epochs and --split."
        )
    curves = [(row, _mean_curve(row)) for row in rows]
    curves = [(row, curve) for row, curve in curves if len(curve) > 1]
    figure = Figure(figsize=(11 if curves else 6.5, max(3.2, 1.6 + 0.42 * len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    _accuracies(axes[0], rows)
    if curves:
        _growth(axes[1], curves)
    first = rows[-1]
    split = "test images" if first.evaluated_on == "test" else "held-out training images"
    figure.suptitle(f"{first.data}, {first.pair}, {first.epochs} epochs, {split}", fontsize=11)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=160)
    except ValueError as error:
        raise UserError(f"{path} cannot be drawn: {error}.") from error


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
        handles.append(axes.axvline(teacher, color=GREY, linestyle="--", label=f"teacher {teacher:.2f}"))
    axes.set_yticks(range(len(rows)), [f"{row.label} (n={len(row.runs)})" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("top-1 (%), whiskers: standard deviation over seeds")
    axes.margins(x=0.12)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)


def _dot(axes: Axes, stat: Stat, place: float, *, marker: str, color: str, face: str) -> None:
    assert stat.mean is not None
    axes.errorbar(
        [stat.mean],
        [place],
        xerr=None if stat.sd is None else [stat.sd],
        fmt=marker,
        color=color,
        markerfacecolor=face,
        capsize=3,
        markersize=6,
    )


def _growth(axes: Axes, curves: list[tuple[Row, dict[int, float]]]) -> None:
    for place, (row, curve) in enumerate(curves):
        axes.plot(
            list(curve),
            list(curve.values()),
            color=COLOURS[place % len(COLOURS)],
            # 7 colours and 5 styles have no common factor: 35 pairs before one returns
            linestyle=STYLES[place % len(STYLES)],
            linewidth=1.6,
            label=row.label,
        )
    # the first tenth is steep and much alike: leaving it out makes room for what differs
    axes.set_ylim(bottom=min(min(list(curve.values())[len(curve) // 10 :]) for _, curve in curves) - 1)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("top-1 (%), mean over seeds")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _mean_curve(row: Row) -> dict[int, float]:
    """Top-1 by epoch, over the epochs that all seeds have."""
    curves = [curve for run in row.runs if (curve := read_curve(run))]
    if not curves:
        return {}
    shared = set.intersection(*(set(curve) for curve in curves))
    return {epoch: fmean(curve[epoch] for curve in curves) for epoch in sorted(shared)}
