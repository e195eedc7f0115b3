"""A report as plain data: grids of cells, notes, commands. `markdown` and `html` print the same words."""

from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = "–"


def epochs(number: int) -> str:
    """A length of training, in words."""
    return f"{number} epoch{'s' * (number != 1)}"


@dataclass(frozen=True)
class Text:
    """One line of a cell.

    Attributes:
        text: As it is read.
        kind: What it is, for the look of it: "ours", "last", "paper", "difference", "nothing", "label".
        notes: Numbers of the notes that belong to it.
    """

    text: str
    kind: str = ""
    notes: tuple[int, ...] = ()

    @property
    def marked(self) -> str:
        """With its notes' numbers."""
        return self.text + "".join(f" [{number}]" for number in self.notes)


Cell = tuple[Text, ...]


@dataclass(frozen=True)
class Band:
    """Rows of a grid under a heading of their own, which may be empty."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: Its heading; "" for none.
        columns: Headings; those of the labels come first.
        labels: How many columns are labels, set to the left; the others hold numbers, set to the right.
        bands: The rows.
        below: Sentences under it.
    """

    title: str
    columns: tuple[str, ...]
    labels: int
    bands: tuple[Band, ...]
    below: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Of the whole; "" for none.
        grids: Its tables.
        legend: How to read them, a paragraph each.
        notes: Numbered from 1, as the cells refer to them.
        remarks: Listed without numbers.
        commands: What to type, and why, under a heading of their own.
        commands_title: That heading.
    """

    title: str
    grids: tuple[Grid, ...]
    legend: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    commands_title: str = ""


def plain(text: str) -> Cell:
    """A cell of a single line."""
    return (Text(text),)


def markdown(page: Page) -> str:
    """As Markdown; a cell's lines are broken by `<br>`."""
    blocks = [f"# {page.title}"] if page.title else []
    blocks += [_grid(grid) for grid in page.grids]
    blocks += [_escaped(paragraph) for paragraph in page.legend]
    blocks += _lists(page)
    if page.commands:
        blocks.append(f"## {page.commands_title}\n\n```bash\n" + "\n".join(page.commands) + "\n```")
    return "\n\n".join(blocks) + "\n"


def _lists(page: Page) -> list[str]:
    lists = [[f"- [{number}] {_escaped(note)}" for number, note in enumerate(page.notes, start=1)]]
    lists.append([f"- {_escaped(remark)}" for remark in page.remarks])
    return ["\n".join(lines) for lines in lists if lines]


def _grid(grid: Grid) -> str:
    aligned = ["---"] * grid.labels + ["---:"] * (len(grid.columns) - grid.labels)
    lines: list[Sequence[str]] = [[_escaped(column) for column in grid.columns], aligned]
    for band in grid.bands:
        if band.title:
            lines.append([f"**{_escaped(band.title)}**", *[""] * (len(grid.columns) - 1)])
        lines += [["<br>".join(_escaped(line.marked) for line in cell) for cell in row] for row in band.rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    heading = [f"## {grid.title}"] if grid.title else []
    return "\n\n".join([*heading, table, *map(_escaped, grid.below)])


def _escaped(text: str) -> str:
    return text.replace("*", r"\*").replace("|", r"\|")
