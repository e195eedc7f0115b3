"""Keep the evidence of finished runs where git tracks it.

python scripts/publish.py outputs/sweeps/2026-01-01_00-00-00        all runs below it, into outputs/published/
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from distill.analysis.store import Result, find_results
from distill.command import folder_name
from distill.files import METRICS, RESULT
from distill.record import write_json


def publish(run: Result, target: Path) -> Path:
    """Copy a run's result.json and metrics.csv.

    Of paths, which belong to a machine, only the names are kept, and when it was written, which a checkout forgets.
    """
    method = f"{run.distiller} {run.variant}".strip()
    kind = "" if run.kind == "train" else run.kind
    split = "" if run.evaluated_on == "test" else f"_{run.evaluated_on}"
    place = target / kind / run.data / f"{run.teacher}-{run.student}" / f"{run.epochs}_epochs{split}"
    place = place / f"{folder_name(method)}_seed{run.seed}"
    place.mkdir(parents=True, exist_ok=True)
    content = json.loads(run.path.read_text())
    content["written"] = run.written
    if content["teacher"] and content["teacher"].get("weights"):
        content["teacher"]["weights"] = Path(content["teacher"]["weights"]).name
    write_json(place / RESULT, content)
    if (metrics := run.path.with_name(METRICS)).exists():
        shutil.copyfile(metrics, place / METRICS)
    return place


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="where to look for finished runs")
    parser.add_argument("--to", type=Path, default=Path("outputs/published"), help="where to keep them")
    options = parser.parse_args(arguments)
    results, skipped = find_results(options.folders)
    for item in skipped:
        print(f"passed over {item.path}: {item.reason}", file=sys.stderr)
    for run in results:
        print(publish(run, options.to))
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
