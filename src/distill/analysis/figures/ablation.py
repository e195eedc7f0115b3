"""MCLD with some of its three terms (the paper's Table 7) as bars, above a grid that says which are on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes

from distill.analysis.figures import style
from distill.analysis.layout import ABLATION, TERMS
from distill.analysis.page import epochs
from distill.analysis.sheet import Filled, Sheet
from distill.errors import UserError


@dataclass(frozen=True)
class Bar:
    """One subset of the terms.

    Attributes:
        terms: Those that are on; none for the student alone.
        best: Ours in percent, mean over seeds of the best epochs; None where there is no run.
        sd: Over seeds; None for fewer than two.
        last: Likewise at the last epoch.
        seeds: How many.
        printed: The paper's, where all of ours were obtained alike; None else.
    """

    terms: frozenset[str]
    best: float | None
    sd: float | None
    last: float | None
    seeds: int
    printed: float | None


def bars_of(sheet: Sheet) -> list[Bar]:
    """Of a filled Table 7, in its order."""
    assert sheet.layout.table == ABLATION
    # of another pair, length or teacher: the paper's bars would only look comparable
    alike = sheet.epochs is None and not any(cell.why_not or cell.slot.instead_of for cell in sheet.cells)
    return [_bar(cell, alike) for cell in sheet.cells]


def _bar(cell: Filled, alike: bool) -> Bar:
    last = None if cell.row is None else cell.row.last("top1").mean
    printed = cell.slot.printed if alike else None
    return Bar(cell.slot.terms or frozenset(), cell.best.mean, cell.best.sd, last, len(cell.seeds), printed)


def ablation_bars(sheet: Sheet, path: str | Path) -> list[Bar]:
    """Draw our accuracy for each subset of the terms, and the paper's beside it where both were obtained alike.

    Args:
        sheet: Table 7 as `distill.analysis.sheet.fill` returns it.
        path: The picture; .png, .pdf or .svg.

    Returns:
        What was drawn.

    Raises:
        UserError: If there is no run of any subset, or the format is unknown.
    """
    style.check(Path(path))
    bars = bars_of(sheet)
    if all(bar.best is None for bar in bars):
        (pair,) = sheet.layout.columns
        raise UserError(
            f"There is no finished run of {pair} with some of MCLD's terms: name another pair with --teacher and "
            "--student, or another length with --epochs."
        )
    beside = any(bar.printed is not None for bar in bars)
    with mpl.rc_context(style.FONTS):
        figure = style.new(style.PAGE * 0.72, 3.6)
        axes, grid = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        _bars(axes, bars, beside)
        _grid(grid, bars)
        axes.set_title(_title(sheet, bars), loc="left")
        style.save(figure, path)
    return bars


def _title(sheet: Sheet, bars: Sequence[Bar]) -> str:
    row = next(cell.row for cell in sheet.cells if cell.row is not None)
    seeds = {bar.seeds for bar in bars if bar.seeds}
    said = "one seed each" if seeds == {1} else f"{seeds.pop()} seeds each" if len(seeds) == 1 else "n: seeds"
    return f"{row.data}, {sheet.layout.columns[0]}, {epochs(row.epochs)}; {said}"


def _bars(axes: Axes, bars: Sequence[Bar], beside: bool) -> None:
    width = 0.38 if beside else 0.62
    shift = width / 2 if beside else 0.0
    there = [value for bar in bars for value in (bar.best, bar.last, bar.printed) if value is not None]
    # accuracies of trained networks differ by little: bars start below the lowest, at zero where that is near
    floor = 0.0 if min(there) < 0.6 * max(there) else min(there) - 0.35 * (max(there) - min(there) + 1)
    several = len({bar.seeds for bar in bars if bar.seeds}) > 1
    top = 0.035 * (max(there) - floor)
    for place, bar in enumerate(bars):
        if bar.best is not None and bar.last is not None:
            error = None if bar.sd is None else [bar.sd]
            colour = style.BLUE if bar.terms else style.PALE
            axes.bar(place - shift, bar.best - floor, width, bottom=floor, color=colour, yerr=error, capsize=2)
            axes.plot(place - shift, bar.last, "o", color="white", markeredgecolor="black", markersize=4)
            count = f"\nn={bar.seeds}" if several else ""
            axes.text(
                place - shift,
                bar.best + (bar.sd or 0) + top,
                f"{bar.best:.2f}{count}",
                ha="center",
                fontsize=style.SMALL,
            )
        else:
            axes.text(place - shift, floor + top, "no run", ha="center", rotation=90, color=style.GREY)
        if bar.printed is not None:
            axes.bar(
                place + shift, bar.printed - floor, width, bottom=floor, color="white", edgecolor="black", hatch="////"
            )
            axes.text(place + shift, bar.printed + top, f"{bar.printed:.2f}", ha="center", fontsize=style.SMALL)
    handles = [
        mpl.patches.Patch(color=style.BLUE, label="MCLD's terms alone, best epoch"),
        mpl.patches.Patch(color=style.PALE, label="student alone, best epoch"),
        mpl.lines.Line2D(
            [], [], marker="o", linestyle="", color="white", markeredgecolor="black", markersize=4, label="last epoch"
        ),
    ]
    if beside:
        handles.append(mpl.patches.Patch(facecolor="white", edgecolor="black", hatch="////", label="the paper's"))
    axes.set_ylim(floor, max(there) + 6 * top)
    axes.set_ylabel("top-1 (%)" if floor == 0 else f"top-1 (%), from {floor:.1f}")
    style.clean(axes, "y")
    axes.tick_params(axis="x", length=0)
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def _grid(axes: Axes, bars: Sequence[Bar]) -> None:
    """A row per term: a filled dot where it is on, a hollow one where it is off."""
    for height, term in enumerate(TERMS):
        for place, bar in enumerate(bars):
            on = term in bar.terms
            axes.plot(
                place, height, "o", color="black" if on else "white", markeredgecolor="0.6" if not on else "black"
            )
    axes.set_yticks(range(len(TERMS)), [f"{term}-wise" if term == "instance" else f"{term}-level" for term in TERMS])
    axes.set_ylim(len(TERMS) - 0.5, -0.5)
    axes.set_xlim(-0.6, len(bars) - 0.4)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
