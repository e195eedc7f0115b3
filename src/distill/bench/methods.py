"""Several methods on one pair, in the plain loop: what each adds to a step."""

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from distill.bench import alone
from distill.bench.loops import Block, Clock, timed
from distill.bench.pair import facts
from distill.bench.plain import Plain, learner_of
from distill.bench.report import plain, spread
from distill.run.config import Config
from distill.run.parts import prepare

WARM_UP = 3


def compare(
    configs: Mapping[str, Config],
    folder: Path,
    *,
    reference: str,
    blocks: int,
    steps: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure methods in turn.

    Args:
        configs: Of each method's run, alike but for the method, as `settings.ready` gives them.
        folder: The one that was made ready.
        reference: The method that the others are compared with.
        blocks: Of each method.
        steps: Of each block.
        say: Tells the user how it goes.

    Returns:
        Milliseconds per step of each method, how many more than the reference's in the same round, both with their
        spread over rounds, and the raw times, as plain data.
    """
    loops: dict[str, Plain] = {}
    about: dict[str, Any] = {}
    for name, config in configs.items():
        prepared = prepare(config, folder)
        batches = [b.to(prepared.device) for b in islice(iter(prepared.data.train_dataloader()), steps)]
        loops[name] = Plain(learner_of(prepared, config["optimizer"]), batches)
        about = facts(config, prepared)
    clock = Clock(prepared.device)
    for loop in loops.values():
        timed(loop, clock, variant="", number=0, steps=WARM_UP)
    times: list[Block] = []
    for number in range(blocks):
        of_round = [timed(loop, clock, variant=name, number=number, steps=steps) for name, loop in loops.items()]
        times += of_round
        said = ", ".join(f"{block.variant} {1e3 * block.seconds / steps:.1f}" for block in of_round)
        say(f"round {number + 1} of {blocks}: milliseconds per step: {said}")
    per_step = {name: [1e3 * b.seconds / b.steps for b in times if b.variant == name] for name in loops}
    over = {
        name: spread(own - base for own, base in zip(values, per_step[reference], strict=True))
        for name, values in per_step.items()
    }
    return {
        "format": 1,
        **about,
        "reference": reference,
        "blocks": blocks,
        "steps": steps,
        "milliseconds": {name: spread(values) for name, values in per_step.items()},
        "over": over,
        "memory": None,
        "raw": {"blocks": plain(times)},
    }


def memory(configs: Mapping[str, Config], folder: Path) -> dict[str, dict[str, int | None]]:
    """Highest memory of each method's plain loop, a process each, as `alone.memory` counts it."""
    return {name: alone.memory(config, folder, ["plain"])["plain"] for name, config in configs.items()}
