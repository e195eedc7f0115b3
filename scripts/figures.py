"""The figures of the paper from finished runs, one command each.

python scripts/figures.py figure3 outputs/published --epochs 5            top-1 over epochs
python scripts/figures.py figure4 outputs/RUN outputs/RUN --limit 2000    t-SNE of the features before the classifier
python scripts/figures.py figure5 outputs/published --epochs 3            time per batch and accuracy
python scripts/figures.py figure6 outputs/RUN outputs/RUN                 do classes relate as in the teacher
python scripts/figures.py table7 outputs/published --teacher resnet56 --student resnet20 --epochs 3
python scripts/figures.py search outputs/sweeps/... --parameter distiller.temperature

Figures 4 and 6 need what both networks answer to the test set. They are asked once (the student from
student.safetensors), and their answers kept beside the run in features.safetensors.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.analysis.store import Result, find_results
from distill.analysis.table import group, method_of
from distill.errors import UserError
from distill.files import FEATURES

FIGURES = ("figure3", "figure4", "figure5", "figure6", "table7", "search")
FILTERS = {"data": "data", "teacher": "teacher", "student": "student", "epochs": "epochs", "split": "evaluated_on"}
SPEED = Path("speed") / "methods.json"  # what scripts/bench.py measured of several methods
MOST = 6  # panels that a page has room for


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("figure", choices=FIGURES)
    result.add_argument("folders", nargs="*", default=["outputs"], help="where to look for result.json (outputs)")
    result.add_argument("--output", type=Path, help="a .png, .pdf or .svg (FIGURE.png)")
    result.add_argument(
        "--methods", help="only these, by the names of scripts/table.py and in this order: none,kd,mcld"
    )
    for name in FILTERS:
        result.add_argument(f"--{name}", help=f"only runs with this {name}")
    result.add_argument("--limit", type=int, help="figures 4 and 6: the first images of the test set only")
    result.add_argument("--root", help="figures 4 and 6: where the data lies, if not where the run found it")
    result.add_argument("--teacher-weights", help="figures 4 and 6: the teacher's file, if it was moved")
    result.add_argument(
        "--speed",
        help="figure 5: a file of scripts/bench.py, or 'runs' for the runs' own throughput (speed/methods.json below"
        " the folders, where it has the pair)",
    )
    result.add_argument("--parameter", default="distiller.temperature", help="search: the number that was searched")
    return result


def chosen(results: Sequence[Result], options: argparse.Namespace) -> list[Result]:
    """The runs that are asked for; a student alone belongs to every teacher's pair.

    Raises:
        UserError: If there are none, or a method is not among them.
    """
    asked = {field: getattr(options, option) for option, field in FILTERS.items()}
    runs = [run for run in results if all(_fits(run, field, wanted) for field, wanted in asked.items())]
    runs = [run for run in runs if run.kind == "train"]
    if options.methods:
        methods = [name.strip() for name in options.methods.split(",")]
        there = {_label(run) for run in runs}
        if unknown := [name for name in methods if name not in there]:
            raise UserError(f"There is no finished run of {', '.join(unknown)}; there are {', '.join(sorted(there))}.")
        runs = sorted((run for run in runs if _label(run) in methods), key=lambda run: methods.index(_label(run)))
    if not runs:
        where = ", ".join(str(Path(folder).resolve()) for folder in options.folders)
        raise UserError(f"No finished run{' that was asked for' if any(asked.values()) else ''} below {where}.")
    return runs


def _fits(run: Result, field: str, wanted: str | None) -> bool:
    value = str(getattr(run, field))
    return wanted is None or value == wanted or (field == "teacher" and value == "none")


def _label(run: Result) -> str:
    return " ".join(method_of(run)).strip()


def draw(options: argparse.Namespace, path: Path) -> None:
    """Draw what the command line says.

    Raises:
        UserError: As the figures do.
    """
    from distill.analysis.figures import style  # matplotlib takes a second to import

    style.check(path)
    results, skipped = find_results(options.folders)
    for item in skipped:
        print(f"passed over {item.path}: {item.reason}", file=sys.stderr)
    if options.figure == "table7":
        _ablation(options, results, path)
        return
    runs = chosen(results, options)
    if options.figure == "figure3":
        from distill.analysis.figures.curves import accuracy_curves

        accuracy_curves(runs, path)
    elif options.figure == "figure5":
        from distill.analysis.figures.cost import accuracy_over_time

        accuracy_over_time(runs, path, speed=_speed(options, runs))
    elif options.figure == "search":
        from distill.analysis.figures.search import search_trials

        search_trials(runs, path, parameter=options.parameter)
    else:
        _observed(options, runs, path)


def _ablation(options: argparse.Namespace, results: Sequence[Result], path: Path) -> None:
    from distill.analysis.figures.ablation import ablation_bars
    from distill.analysis.sheet import fill

    if options.epochs is not None and not options.epochs.isdecimal():
        raise UserError(f"--epochs {options.epochs} is no number of epochs.")
    sheet = fill(
        7,
        group(results)[0],
        teacher=options.teacher,
        student=options.student,
        epochs=None if options.epochs is None else int(options.epochs),
    )
    ablation_bars(sheet, path)


def _speed(options: argparse.Namespace, runs: Sequence[Result]) -> Path | None:
    """The benchmark to draw from: the one that is named, or the first that has the pair."""
    from distill.analysis.figures.cost import read_speed

    if options.speed is not None:
        return None if options.speed == "runs" else Path(options.speed)
    pairs = {f"{run.teacher} → {run.student}" for run in runs}
    for folder in options.folders:
        for path in sorted(Path(folder).rglob(str(SPEED))):
            if pairs & {entry["pair"] for entry in read_speed(path)}:
                return path
    return None


def _observed(options: argparse.Namespace, runs: Sequence[Result], path: Path) -> None:
    """Figures 4 and 6: one run per method, of one pair."""
    from distill.analysis.figures import style
    from distill.analysis.observed import images_in, read_observed

    rows = style.one_pair(runs)
    rows = sorted(rows, key=lambda row: next(i for i, run in enumerate(runs) if run in row.runs))
    if len(rows) > MOST:
        raise UserError(
            f"There is room for {MOST} methods, and there are {len(rows)}: choose with --methods, of "
            f"{', '.join(row.label for row in rows)}."
        )
    observed = []
    for row in rows:
        folder = row.runs[0].path.parent  # the lowest seed
        kept = folder / FEATURES
        if not kept.exists() or images_in(kept) < (options.limit or 0):
            from distill.run.observe import observe_run

            print(f"asking the networks of {folder} about the test set", file=sys.stderr)
            observe_run(folder, limit=options.limit, root=options.root, teacher_weights=options.teacher_weights)
        observed.append((row.label, read_observed(kept, limit=options.limit)))
    title = f"{style.trained(rows)}, seed {', '.join(sorted({str(row.runs[0].seed) for row in rows}))}"
    if options.figure == "figure4":
        from distill.analysis.figures.embedding import feature_maps

        feature_maps(observed, path, title=title)
    else:
        from distill.analysis.figures.correlation import correlation_difference

        correlation_difference(observed, path, title=title)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    options = parser().parse_args(arguments)
    path = options.output or Path(f"{options.figure}.png")
    try:
        draw(options, path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
