"""Compute a teacher's answers ahead of the runs that will ask for them.

python scripts/keep.py teacher=resnet56 student=resnet20                      the views that seed 0 meets in its epochs
python scripts/keep.py --seeds 0,1,2 teacher=resnet56 recipe.epochs=30        those of a sweep over three seeds
python scripts/keep.py --all teacher=resnet56                                 every view of every training image

Everything but the options is an override of train.py. Runs with teacher.keep=disk find what is here; it can be stopped
at any time and goes on where it was.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from distill import command
from distill.errors import UserError
from distill.mistake import BEFORE_A_JOB, sentence

if TYPE_CHECKING:
    from distill.data.base import ImageData
    from distill.data.resident import ResidentTrain
    from distill.types import Batch

CONF = Path(__file__).parents[1] / "conf"
BATCH = 512  # views looked up at once; how many are computed at once is the teacher's affair


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--seeds", type=_numbers, default=[0], metavar="N,N,...", help="of the runs to come (0)")
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    result.add_argument("--all", action="store_true", help="every view there is, whatever the seeds and epochs")
    return result


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def views_of_runs(data: "ImageData", seeds: list[int], epochs: int) -> Iterator["Batch"]:
    """What runs with these seeds will ask in their epochs; all seeds' first epochs first."""
    for epoch in range(epochs):
        for seed in seeds:
            data.seed = seed
            yield from data.train_dataloader().batches(epoch, 0)


def all_views(loader: "ResidentTrain") -> Iterator["Batch"]:
    """Every view of every image, image by image."""
    import torch

    from distill.data.resident import count_views, crop_and_flip, view_numbered
    from distill.types import Batch

    views = count_views(padding=loader.padding, flip=loader.flip)
    for names in torch.arange(len(loader.labels) * views).split(loader.cuts.batch_size):
        index = (names // views).to(loader.images.device)
        view = view_numbered(names % views, padding=loader.padding, flip=loader.flip).to(index.device)
        images = crop_and_flip(loader.images, index, view, padding=loader.padding)
        yield Batch(images.float() / 255, loader.labels[index], index, view=view, names=names)


def fill(overrides: list[str], seeds: list[int], *, everything: bool) -> float:
    """Ask the teacher about what is not known yet.

    Returns:
        Share of all views that are known then.

    Raises:
        UserError: As a run with `teacher.keep=disk`.
    """
    from tqdm.auto import tqdm

    from distill.kept import KeptTeacher
    from distill.run import config as settings
    from distill.run.check import check
    from distill.run.parts import prepare

    config = settings.resolve(command.composed(CONF, "train", [*overrides, "teacher.keep=disk"]))
    check(config)
    with TemporaryDirectory() as folder:
        parts = prepare(config, Path(folder))
    asked, data = parts.asked, parts.data
    if not isinstance(asked, KeptTeacher) or data.num_views is None:
        raise UserError("There are no answers to keep: name a teacher with teacher=NAME and a method that asks it.")
    data.batch_size = BATCH
    names = data.num_samples * data.num_views
    epochs = config["recipe"]["epochs"]
    batches = all_views(data.train_dataloader()) if everything else views_of_runs(data, seeds, epochs)
    total = names if everything else data.num_samples * epochs * len(seeds)
    with tqdm(total=total, unit="view", unit_scale=True, dynamic_ncols=True, smoothing=0.05) as bar:
        for batch in batches:
            asked.ask(batch.to(parts.device))
            bar.update(len(batch))
    asked.finish()
    return asked.answers.known() / names


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill a table of answers from the command line."""
    options = parser().parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        known = fill(options.overrides, options.seeds, everything=options.all)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except BEFORE_A_JOB as error:
        print(sentence(error), file=sys.stderr)
        return 1
    print(f"{100 * known:.1f} % of all views are known")
    return 0


if __name__ == "__main__":
    sys.exit(main())
