"""Tables and pictures of finished runs, with the paper's numbers beside them.

python scripts/table.py                                       all runs below outputs/, as Markdown
python scripts/table.py outputs/published --output RESULTS.md --html RESULTS.html
python scripts/table.py --student resnet20 --picture resnet20.png
python scripts/table.py --table 2 --html table2.html          the paper's Table 2 with our numbers in it
python scripts/table.py --table 7 --teacher resnet56 --student resnet20 --epochs 3
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.analysis.html import html
from distill.analysis.page import Page, markdown
from distill.analysis.sheet import fill, report
from distill.analysis.store import Result, Skipped, find_results
from distill.analysis.table import group, overview
from distill.errors import UserError

FILTERS = {"data": "data", "teacher": "teacher", "student": "student", "epochs": "epochs", "split": "evaluated_on"}
OF_THE_OVERVIEW = ("data", "split", "picture")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("folders", nargs="*", default=["outputs"], help="where to look for result.json (outputs)")
    result.add_argument("--table", type=int, metavar="N", help="lay out the paper's Table N instead, from 1 to 11")
    result.add_argument("--output", type=Path, help="write the table there instead of to the terminal")
    result.add_argument("--html", type=Path, help="also write it as one HTML file, for the screen and for paper")
    result.add_argument("--json", action="store_true", help="unrounded, as JSON")
    result.add_argument("--metric", choices=["top1", "top5"], default="top1", help="what best and paper are about")
    result.add_argument("--picture", type=Path, help="also draw one pair of networks, as .png, .pdf or .svg")
    for name in FILTERS:
        result.add_argument(f"--{name}", help=f"only runs with this {name}")
    return result


def matches(run: Result, options: argparse.Namespace) -> bool:
    """Whether a run is asked for; a student alone belongs to every teacher's pair."""
    for option, field in FILTERS.items():
        wanted, value = getattr(options, option), str(getattr(run, field))
        if wanted is not None and value != wanted and not (option == "teacher" and value == "none"):
            return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    options = parser().parse_args(arguments)
    results, skipped = find_results(options.folders)
    for item in skipped:
        print(f"passed over {item.path}: {item.reason}", file=sys.stderr)
    try:
        page, plain = _all(options, results, skipped) if options.table is None else _one(options, results)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n" if options.json else markdown(page)
    if options.output:
        _write(options.output, text)
    else:
        print(text, end="")
    if options.html:
        _write(options.html, html(page))
    if options.picture:
        from distill.analysis.figures.comparison import comparison  # matplotlib takes a second to import

        try:
            comparison([run for run in results if matches(run, options)], options.picture)
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def _all(options: argparse.Namespace, results: list[Result], skipped: list[Skipped]) -> tuple[Page, dict[str, Any]]:
    """Every run that is asked for."""
    results = [run for run in results if matches(run, options)]
    if not results:
        where = ", ".join(str(Path(folder).resolve()) for folder in options.folders)
        asked = " that was asked for" if any(getattr(options, name) for name in FILTERS) else ""
        raise UserError(f"No finished run{asked} below {where}.")
    rows, notes = group(results)
    content = {
        "rows": [row.plain(options.metric) for row in rows],
        "notes": notes,
        "skipped": [{"path": str(item.path), "reason": item.reason} for item in skipped],
    }
    return replace(overview(rows, notes, metric=options.metric), title="Results"), content


def _one(options: argparse.Namespace, results: list[Result]) -> tuple[Page, dict[str, Any]]:
    """A table of the paper, which also says what is missing; so no run at all is no mistake."""
    if given := [f"--{name}" for name in OF_THE_OVERVIEW if getattr(options, name)]:
        raise UserError(f"{' and '.join(given)} cannot go with --table, which chooses by itself what it shows.")
    if options.epochs is not None and not options.epochs.isdecimal():
        raise UserError(f"--epochs {options.epochs} is no number of epochs.")
    rows, notes = group(results)
    sheet = fill(
        options.table,
        rows,
        teacher=options.teacher,
        student=options.student,
        epochs=None if options.epochs is None else int(options.epochs),
    )
    shown = {f"{row.where}: " for cell in sheet.cells if (row := cell.row) is not None}
    for note in notes:
        if note.startswith(tuple(shown)):
            print(note, file=sys.stderr)
    return report(sheet), sheet.plain()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
