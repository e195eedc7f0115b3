"""Tables and pictures of finished runs, with the paper's numbers beside them.

python scripts/table.py                                       all runs below outputs/, as Markdown
python scripts/table.py outputs/published --output RESULTS.md
python scripts/table.py --student resnet20 --picture resnet20.png
"""

import argparse
import json
import sys
from pathlib import Path

from distill.analysis.store import Result, find_results
from distill.analysis.table import group, markdown
from distill.errors import UserError

FILTERS = {"data": "data", "teacher": "teacher", "student": "student", "epochs": "epochs", "split": "evaluated_on"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("folders", nargs="*", default=["outputs"], help="where to look for result.json (outputs)")
    result.add_argument("--output", type=Path, help="write the table there instead of to the terminal")
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
    results = [run for run in results if matches(run, options)]
    if not results:
        where = ", ".join(str(Path(folder).resolve()) for folder in options.folders)
        asked = " that was asked for" if any(getattr(options, name) for name in FILTERS) else ""
        print(f"No finished run{asked} below {where}.", file=sys.stderr)
        return 1
    rows, notes = group(results)
    if options.json:
        content = {
            "rows": [row.plain(options.metric) for row in rows],
            "notes": notes,
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in skipped],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    else:
        text = markdown(rows, notes, metric=options.metric)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)
    else:
        print(text, end="")
    if options.picture:
        from distill.analysis.figure import comparison  # matplotlib takes a second to import

        try:
            comparison(results, options.picture)
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
