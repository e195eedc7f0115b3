"""How many milliseconds a training step takes here, beside the usual recipe and a plain loop.

python scripts/bench.py --teacher resnet32x4 --student resnet8x4 --distiller mcld --root data --json bench.json
python scripts/bench.py --pairs resnet56-resnet20,wrn_40_2-wrn_16_2 --device cpu --threads 2
python scripts/bench.py --distillers kd,dkd,rld,mcld           what each method adds to a step of KD
python scripts/bench.py student=resnet8x4 recipe.batch_size=128   anything that train.py takes

Four variants take turns in one process, in blocks of at least 20 steps: (a) float32, eager, contiguous, PIL images from
two worker processes; (b) this project's kernels on batches that lie on the device; (c) the real training path; (d) the
same with the teacher's answers already kept. Prints Markdown: medians and spread, ratios, where the time goes, memory,
start-up, the end of an epoch. Nothing else should run meanwhile.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="handed on, as to train.py")
    result.add_argument("--teacher", help="train.py's default if not given, as for the next three")
    result.add_argument("--student")
    result.add_argument("--distiller")
    result.add_argument("--data")
    result.add_argument("--pairs", type=_listed, help="TEACHER-STUDENT,... instead of one pair: a table of several")
    result.add_argument("--distillers", type=_listed, help="METHOD,...: compare methods with the first, in (b) alone")
    result.add_argument("--root", help="folder of the data")
    result.add_argument("--device", choices=["cpu", "cuda"], help="default: what train.py would take")
    result.add_argument("--blocks", type=_at_least(1), default=5, help="of each variant (5)")
    result.add_argument("--steps", type=_at_least(20), default=20, help="of each block, at least 20 (20)")
    result.add_argument("--threads", type=_at_least(1), help="of every variant on a CPU (torch's default)")
    result.add_argument("--random-teacher", action="store_true", help="do not look for weights: as good for timing")
    result.add_argument("--json", type=Path, help="also write everything there, raw times included")
    result.add_argument("--no-memory", action="store_true", help="leave out the memory (a process for each variant)")
    result.add_argument("--no-startup", action="store_true", help="leave out the start-up (a real command)")
    result.add_argument("--profile", action="store_true", help="also print torch's profile of a block of (c)")
    return result


def _listed(text: str) -> list[str]:
    return text.split(",")


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too few: at least {least}")
        return int(text)

    return number


def overrides_of(options: argparse.Namespace, **chosen: str) -> list[str]:
    """Words of train.py's command line for one run."""
    named = {key: getattr(options, key) for key in ("teacher", "student", "distiller", "data")} | chosen
    words = [f"{key}={value}" for key, value in named.items() if value is not None]
    if options.root is not None:
        words.append(f"data.root={options.root}")
    if options.device is not None:
        words.append(f"trainer.accelerator={options.device}")
    return [*words, *options.overrides]


def say(line: str) -> None:
    """How it goes, beside the table."""
    print(line, file=sys.stderr, flush=True)


def bench_pairs(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Results of every pair, and their tables."""
    from distill.bench import alone, pair, report, settings
    from distill.errors import UserError

    chosen: list[dict[str, str]] = [{}]
    if options.pairs:
        if wrong := [text for text in options.pairs if text.count("-") != 1]:
            raise UserError(f"--pairs {wrong[0]} is no pair: write TEACHER-STUDENT.")
        chosen = [dict(zip(("teacher", "student"), text.split("-"), strict=True)) for text in options.pairs]
    results = []
    for networks in chosen:
        overrides = overrides_of(options, **networks)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            config = settings.ready(
                settings.composed(ROOT / "conf", overrides), folder, random_teacher=options.random_teacher
            )
            result = pair.measure(
                config, folder, blocks=options.blocks, steps=options.steps, profiled=options.profile, say=say
            )
            say(f"{result['pair']}: blocks are done")
            if not options.no_memory:
                result["memory"] = alone.memory(
                    config, folder, [v for v in report.NAMES if v in result["milliseconds"]]
                )
                say(f"{result['pair']}: memory is measured")
            if not options.no_startup:
                words = list(overrides)
                if result["teacher_weights"] == "random":
                    words += [f"teacher.weights={config['teacher']['weights']}", "teacher.allow_chance=true"]
                result["startup"] = alone.startup(ROOT / "src" / "train.py", words)
        results.append(result)
    text = report.markdown(results)
    for result in results:
        if profile := result.pop("profile"):
            text += f"\n{result['pair']}:\n{profile}\n"
    return results, text


def bench_methods(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """The comparison of methods, and its table."""
    from distill.bench import methods, report, settings

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        configs = {
            name: settings.ready(
                settings.composed(ROOT / "conf", overrides_of(options, distiller=name)),
                folder,
                random_teacher=options.random_teacher,
            )
            for name in options.distillers
        }
        result = methods.compare(
            configs, folder, reference=options.distillers[0], blocks=options.blocks, steps=options.steps, say=say
        )
        if not options.no_memory:
            result["memory"] = methods.memory(configs, folder)
    return [result], report.methods_markdown(result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    options = parser().parse_intermixed_args(arguments)

    import torch

    from distill.errors import UserError
    from distill.mistake import BEFORE_A_JOB, sentence

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        results, text = bench_methods(options) if options.distillers else bench_pairs(options)
    except UserError as error:
        say(str(error))
        return 1
    except BEFORE_A_JOB as error:
        say(sentence(error))
        return 1
    print(text, end="")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
