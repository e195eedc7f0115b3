"""The README's table of methods, from the code.

python scripts/methods.py                     prints it
python scripts/methods.py --write README.md   puts it between the two marks there
"""

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from distill import command
from distill.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
TIMES = ROOT / "outputs/published/speed/methods.json"
BEGIN, END = "<!-- methods: python scripts/methods.py --write README.md -->", "<!-- end of methods -->"
PAIR = ("resnet56", "resnet20")


def described(name: str) -> dict[str, Any]:
    """What the code says of one method, for one pair of networks."""
    import torch

    from distill.build import build_distiller, build_network, methods_in, shapes
    from distill.run import config as settings
    from distill.types import Spec

    words = [f"distiller={name}", f"teacher={PAIR[0]}", f"student={PAIR[1]}"]
    config = settings.resolve(command.composed(CONF, "train", words))
    data = config["data"]
    built = {
        role: build_network(config[role], what=role, num_classes=100, mean=data["mean"], std=data["std"], seed=0)
        for role in ("teacher", "student")
    }
    found = {role: shapes(network, what=role, num_classes=100, size=32) for role, network in built.items()}
    spec = Spec(**found, num_classes=100, num_samples=50_000, labels=torch.arange(50_000) % 100, batch_size=64)
    method = build_distiller(config["distiller"], spec, seed=0)
    module = inspect.getmodule(type(method))
    text = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    if name != (wrapper := name.partition("_")[0]):  # a wrapper with its host
        hosts = [part["_target_"].rpartition(".")[2] for part in methods_in(config["distiller"]).values()]
        text = f"`{wrapper}` over {' and '.join(hosts)}, with its published numbers."
    return {
        "name": name,
        "about": text,
        "parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "reads": method.needs + (" of two views" if method.views == 2 else ""),
        "keeps": method.needs == "logits" and method.needs_teacher,
        "file": Path(inspect.getfile(type(method))).relative_to(ROOT).as_posix(),
    }


def table(measured: dict[str, Any]) -> str:
    """All methods as a Markdown table.

    Args:
        measured: What a step of each takes more than one of KD, where measured: "over" in milliseconds, the spread over
            rounds, and "memory" at the peak, in bytes.
    """
    lines = [
        "| `distiller=` | what it is | reads | extra parameters | over KD, ms | over KD, MiB | `teacher.keep` |",
        "|---|---|---|--:|--:|--:|---|",
    ]
    peaks = {name: peak["process"] / 2**20 for name, peak in measured["memory"].items()}
    for name in sorted(path.stem for path in (CONF / "distiller").glob("*.yaml")):
        one = described(name)
        time = f"{measured['over'][name]['median']:+.0f}" if name in peaks else "–"
        memory = f"{peaks[name] - peaks['kd']:+.0f}" if name in peaks else "–"
        lines.append(
            f"| [`{name}`]({one['file']}) | {one['about']} | {one['reads']} | {one['parameters']:,} | {time} |"
            f" {memory} | {'yes' if one['keeps'] else 'no'} |"
        )
    return "\n".join(lines)


def measured() -> dict[str, Any]:
    """What `scripts/bench.py --distillers kd,... --json` found, as it is published."""
    found: dict[str, Any] = json.loads(TIMES.read_text())[0]
    return found


def written(text: str, new: str) -> str:
    """A text with the table between its marks replaced.

    Raises:
        UserError: If it has no marks.
    """
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise UserError(f"There is no place for the table: the file needs the lines {BEGIN!r} and {END!r}.")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def main() -> int:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a file with the marks")
    options = parser.parse_args()
    new = table(measured())
    if options.write is None:
        print(new)
    else:
        options.write.write_text(written(options.write.read_text(), new))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
