"""Every method on every pair of the MCLD paper's tables: does it take real steps there, and what does a step cost?

python scripts/grid.py                                        all of it, to outputs/grid/grid.json and grid.md
python scripts/grid.py --methods kd,mcld --pairs resnet56-resnet20,imagenet_resnet34-imagenet_resnet18
python scripts/grid.py --append                               goes on where it was stopped, or adds what is lacking

The ImageNet pairs look at images of 64 px, all others at 32. Times are of random networks on random images in float32
on the CPU, in the loop of `distill.bench.grid`, whose teacher is not in its fastest form; the first step is left out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill import command
from distill.errors import UserError

CONF = Path(__file__).resolve().parents[1] / "conf"
SAMPLES = 50_000  # CIFAR-100's: banks and queues are as long as they would be there


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--methods", help="by comma (all)")
    result.add_argument("--pairs", help="teacher-student, by comma (all)")
    result.add_argument("--rows", type=int, default=16, help="images of a batch (16)")
    result.add_argument("--steps", type=int, default=4, help="of each cell; all but the first are timed (4)")
    result.add_argument("--threads", type=int, default=1, help="of the processor (1)")
    result.add_argument("--append", action="store_true", help="keep what grid.json has, and add what it lacks")
    result.add_argument("--output", type=Path, default=Path("outputs/grid"), help="folder (outputs/grid)")
    return result


def chosen(words: str | None, among: list[str], what: str) -> list[str]:
    """Those that were named, in the order of all.

    Raises:
        UserError: If one is unknown.
    """
    if words is None:
        return among
    names = words.split(",")
    if unknown := [name for name in names if name not in among]:
        raise UserError(f"there is no {what} {unknown[0]}: choose of {', '.join(among)}.")
    return [name for name in among if name in names]


def main(arguments: list[str] | None = None) -> int:
    """Fill the grid, saving it after each pair."""
    options = parser().parse_args(arguments)
    import torch

    from distill import record
    from distill.bench import grid
    from distill.numerics import flush_denormals

    if options.steps < 2 or options.rows < 2:
        raise UserError("--steps and --rows must be at least 2.")
    methods = chosen(options.methods, sorted(path.stem for path in (CONF / "distiller").glob("*.yaml")), "method")
    pairs = {"-".join(pair): pair for pair in grid.pairs()}
    pairs = {name: pairs[name] for name in chosen(options.pairs, list(pairs), "pair")}
    torch.set_num_threads(options.threads)
    flush_denormals()
    settings = {"rows": options.rows, "steps": options.steps, "threads": options.threads, "samples": SAMPLES}
    about: dict[str, Any] = {"format": 1, **settings, "device": record.device_name(torch.device("cpu"))}
    file = options.output / "grid.json"
    cells = []
    if options.append and file.exists():
        content = json.loads(file.read_text())
        if other := [key for key in about if content.get(key) != about[key]]:
            raise UserError(f"{file} was made with {other[0]} {content.get(other[0])}: choose another --output.")
        cells = grid.from_plain(content["cells"])
    known = {(cell.method, cell.teacher, cell.student) for cell in cells}
    bar = tqdm(total=len(pairs) * len(methods), unit="cell")
    for name, pair in pairs.items():
        for method in methods:
            bar.set_description(f"{name} {method}")
            if (method, *pair) not in known:
                cells.append(one(method, pair, rows=options.rows, count_of=options.steps))
            bar.update()
        about |= {"versions": record.versions(), "commit": record.commit()}
        record.write_json(file, about | {"cells": grid.as_plain(cells)})
        record.write_text(options.output / "grid.md", written(about, grid.markdown(cells)))
    bar.close()
    print(written(about, grid.markdown(cells)), end="")
    return int(any(cell.trouble for cell in cells))


def written(about: dict[str, Any], table: str) -> str:
    """The table, and what it is of."""
    return f"Batch {about['rows']}, float32, {about['device']}, torch {about['versions']['torch']}.\n\n{table}"


def one(method: str, pair: tuple[str, str], *, rows: int, count_of: int) -> Any:
    """A cell of the grid; what fails by an error is one that does not pass."""
    from distill.bench import grid
    from distill.run import config as settings

    words = [f"distiller={method}", f"teacher={pair[0]}", f"student={pair[1]}"]
    try:
        node = settings.resolve(command.composed(CONF, "train", words))["distiller"]
        return grid.steps(method, node, pair, rows=rows, samples=SAMPLES, count_of=count_of)
    except Exception as error:  # a grid with one hole is worth more than none
        return grid.Cell(method, *pair, f"{type(error).__name__}: {' '.join(str(error).split())}", (), 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
