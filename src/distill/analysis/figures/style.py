"""How all pictures look: for print at the width of a page, for the colour-blind, and for grey printers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distill.analysis.page import epochs
from distill.analysis.store import Result
from distill.analysis.table import Row, group
from distill.errors import UserError

# Okabe and Ito's colours without yellow, told apart by colour-blind eyes; line styles and markers tell them apart in
# grey. 7 colours, 5 styles and 9 markers share no factor: no two of 35 lines look alike
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
BLUE, ORANGE, GREY, PALE = "#0072B2", "#E69F00", "#555555", "#D9D9D9"

COLUMN, PAGE = 3.4, 7.0  # widths of a column and of a page, inches
DPI = 200
ENDINGS = (".png", ".pdf", ".svg")
SMALL = 7  # points

FONTS: Any = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "figure.titlesize": 9.5,
    "axes.linewidth": 0.7,
    "pdf.fonttype": 42,  # letters stay letters in print shops and editors
    "svg.fonttype": "none",
    "svg.hashsalt": "distill",  # one picture, one file
}


def height_of(axes: Axes) -> float:
    """Of the whole picture, in inches."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    return float(figure.get_size_inches()[1])


def new(width: float, height: float) -> Figure:
    """An empty picture of a size in inches."""
    with mpl.rc_context(FONTS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write it in the format that the path's ending names, into a folder that is made where it is absent.

    Raises:
        UserError: If the ending is none of .png, .pdf and .svg.
    """
    path = Path(path)
    check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(FONTS):
        figure.savefig(path, dpi=DPI)


def check(path: Path) -> None:
    """Refuse a path whose ending names no format, before anything is computed.

    Raises:
        UserError: If it does not.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path} cannot be drawn: its name must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")


def clean(axes: Axes, grid: Literal["both", "x", "y"] | None = None) -> None:
    """Take away what carries nothing; a grid of both axes, of "x" or of "y"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color="0.9", linewidth=0.6)


def one_pair(results: Iterable[Result]) -> list[Row]:
    """The rows of one data set, pair, number of epochs and split; runs of the student alone belong to its pair.

    Raises:
        UserError: If there are none, or they are of several.
    """
    rows, _ = group(results)
    if not rows:
        raise UserError("There is no finished run to draw.")
    cells = {(r.kind, r.data, r.epochs, r.evaluated_on, r.student) for r in rows}
    teachers = {row.teacher for row in rows} - {"none"}
    if len(cells) > 1 or len(teachers) > 1:
        listed = "; ".join(sorted({f"{r.data}, {epochs(r.epochs)}, {r.evaluated_on}, {r.pair}" for r in rows}))
        raise UserError(
            f"A picture shows one pair of networks, and there are several: {listed}. "
            "Choose with --data, --teacher, --student, --epochs and --split."
        )
    return rows


def about(rows: Sequence[Row]) -> str:
    """Data, pair and length of some rows of one pair, and which images their scores are of, in words."""
    split = "test images" if rows[0].evaluated_on == "test" else "held-out training images"
    return f"{trained(rows)}, {split}"


def trained(rows: Sequence[Row]) -> str:
    """Data, pair and length of some rows of one pair, in words."""
    row = next((row for row in rows if row.teacher != "none"), rows[0])
    return f"{row.data}, {row.pair}, {epochs(row.epochs)}"


def apart(places: Sequence[float], gap: float, *, high: float) -> list[float]:
    """Heights for labels near the wanted ones, at least `gap` apart, below `high`, their order kept."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    # blocks of labels that touch, each centred on what its members want
    blocks: list[list[int]] = []
    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and _low(blocks[-1], places, gap) < _high(blocks[-2], places, gap) + gap:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    result = [0.0] * len(places)
    for block in blocks:
        for step, i in enumerate(block):
            result[i] = _low(block, places, gap) + step * gap
    for place, i in enumerate(reversed(order)):
        result[i] = min(result[i], high - place * gap)
    return result


def _low(block: list[int], places: Sequence[float], gap: float) -> float:
    return sum(places[i] for i in block) / len(block) - gap * (len(block) - 1) / 2


def _high(block: list[int], places: Sequence[float], gap: float) -> float:
    return _low(block, places, gap) + gap * (len(block) - 1)
