"""Turns of all variants: the real training path drives, and the others run while it holds still."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile

from distill.answers import Answers, half
from distill.bench.loops import Block, Clock, Relay, timed
from distill.bench.plain import Laps, Plain, TakenApart, learner_of
from distill.bench.usual import Usual
from distill.build import Node
from distill.data.loader import TrainLoader
from distill.errors import UserError
from distill.kept import KeptTeacher
from distill.run.parts import Prepared
from distill.types import Batch

WARM_UP = 3  # steps of each variant before the first round
ORDER = ("real", "plain", "kept", "usual")
ELSEWHERE = 10**6  # an epoch that no run reaches: the batches of the plain loop are not those of the real path


class Enough(BaseException):
    """The end of a training that was only looked at; a BaseException, so that nobody takes it for an error."""


class Driven(pl.Callback):
    """Lets a script run between the steps of training; must come first among the callbacks.

    The script is a generator: each `yield` lets training take one step, from the end of one batch to the end of the
    next: the remaining hooks, loggers, drawing the next batch, the step. After its last, training is asked to stop.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.batch = 0
        self.left = 0

    def script(self, trainer: pl.Trainer) -> Iterator[None]:
        """What to do between steps."""
        raise NotImplementedError

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._script = self.script(trainer)
        next(self._script)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.epoch, self.batch = trainer.current_epoch, batch_idx + 1
        self.left = int(trainer.num_training_batches) - self.batch
        if next(self._script, self) is self:
            trainer.should_stop = True

    def within_an_epoch(self, steps: int) -> Iterator[None]:
        """Go on to the next epoch if this one is too short for so many steps."""
        while self.left < steps:
            yield

    def coming(self, trainer: pl.Trainer, steps: int) -> list[Batch]:
        """The batches that the next steps will see."""
        return list(itertools.islice(loader_of(trainer).batches(self.epoch, self.batch), steps))


class Rounds(Driven):
    """Measures all variants in turn, and what an epoch's end costs.

    Args:
        prepared: Its `asked` is the teacher of `plain` and `real`.
        relay: What the training path asks instead; None without a teacher.
        kept: A teacher whose answers can be kept, or None.
        usual: The usual recipe.
        optimizer: Node of the configuration.
        blocks: Rounds.
        steps: Of each block.
        laps: Steps of each round that are taken apart.
        profiled: Whether one more block of the real path is watched by torch's profiler.
        say: Tells the user how it goes.
    """

    def __init__(
        self,
        *,
        prepared: Prepared,
        relay: Relay | None,
        kept: KeptTeacher | None,
        usual: Usual,
        optimizer: Node,
        blocks: int,
        steps: int,
        laps: int,
        profiled: bool,
        say: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.prepared = prepared
        self.relay = relay
        self.kept = kept
        self.usual = usual
        self.optimizer = optimizer
        self.number = blocks
        self.steps = steps
        self.lap_steps = laps
        self.profiled = profiled
        self.say = say
        self.clock = Clock(prepared.device)
        self.blocks: list[Block] = []
        self.laps: list[Laps] = []
        self.validation = self.saving = 0.0
        self.profile: str | None = None
        self._since = 0.0

    def script(self, trainer: pl.Trainer) -> Iterator[None]:
        device = self.prepared.device
        loader = loader_of(trainer)
        if len(loader) < self.steps + 2:
            raise UserError(
                f"An epoch has {len(loader)} steps, which leaves no block of {self.steps}: choose a smaller"
                " recipe.batch_size."
            )
        if self.relay is not None:
            self.relay.to(device)
        batches = [b.to(device) for b in itertools.islice(loader.batches(ELSEWHERE, 0), self.steps)]
        learner = learner_of(self.prepared, self.optimizer)
        plain = Plain(learner, batches)
        others = itertools.chain.from_iterable(loader.batches(epoch, 0) for epoch in itertools.count(ELSEWHERE + 1))
        apart = TakenApart(learner, others, self.clock)
        timed(self.usual, self.clock, variant="", number=0, steps=WARM_UP)
        timed(plain, self.clock, variant="", number=0, steps=WARM_UP)
        apart.laps(number=0, steps=1)
        for _ in range(WARM_UP):
            yield
        for number in range(self.number):
            # there and back, so that what drifts falls on all alike; the two that differ least are neighbours
            for variant in ORDER if number % 2 == 0 else reversed(ORDER):
                if variant == "real":
                    yield from self._training("real", number)
                elif variant == "kept":
                    yield from self._training_with_answers(trainer, number)
                else:
                    loop = plain if variant == "plain" else self.usual
                    self.blocks.append(timed(loop, self.clock, variant=variant, number=number, steps=self.steps))
            self.laps.append(apart.laps(number=number, steps=self.lap_steps))
            self.say(self._line(number))
        if self.profiled:
            yield from self._watched()

    def _training(self, variant: str, number: int) -> Iterator[None]:
        yield from self.within_an_epoch(self.steps + 1)
        yield  # not counted, as in the other variants
        start = self.clock()
        for _ in range(self.steps):
            yield
        self.blocks.append(Block(variant, number, self.steps, self.clock() - start))

    def _training_with_answers(self, trainer: pl.Trainer, number: int) -> Iterator[None]:
        if self.kept is None or self.relay is None:
            return
        yield from self.within_an_epoch(self.steps + 1)
        for batch in self.coming(trainer, self.steps + 1):
            know(self.kept.answers, batch)
        usually, self.relay.inner = self.relay.inner, self.kept
        yield from self._training("kept", number)
        self.relay.inner = usually

    def _watched(self) -> Iterator[None]:
        yield from self.within_an_epoch(self.steps)
        cuda = self.prepared.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities, acc_events=True) as watch:
            for _ in range(self.steps):
                yield
        order = "self_device_time_total" if cuda else "self_cpu_time_total"
        self.profile = watch.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)

    def _line(self, number: int) -> str:
        of_round = {block.variant: 1e3 * block.seconds / block.steps for block in self.blocks if block.round == number}
        times = ", ".join(f"{variant} {ms:.1f}" for variant, ms in of_round.items())
        return f"round {number + 1} of {self.number}: milliseconds per step: {times}"

    # ------------------------------------------------------------------ the end of an epoch

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = self.clock()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validation = self.clock() - self._since

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = self.clock()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saving = self.clock() - self._since


def loader_of(trainer: pl.Trainer) -> TrainLoader:
    """The loader under way."""
    loader = trainer.train_dataloader
    assert isinstance(loader, TrainLoader)
    return loader


def keeping(prepared: Prepared, asked: bool) -> KeptTeacher | None:
    """The teacher with an empty table in memory; None where a run could not keep its answers.

    Args:
        prepared: The run.
        asked: Whether the method asks its teacher at all.

    Raises:
        UserError: If there is no room.
    """
    data, distiller = prepared.data, prepared.distiller
    if prepared.asked is None or not asked or distiller.needs != "logits" or data.num_views is None:
        return None
    answers = Answers.in_memory(data.num_samples * data.num_views, data.num_classes)
    return KeptTeacher(prepared.asked, answers)


def know(answers: Answers, batch: Batch) -> None:
    """Enter answers to a batch: any will do, since looking them up takes the same time."""
    assert batch.names is not None
    generator = torch.Generator().manual_seed(int(batch.names[0]))
    answers.write(batch.names, half(5 * torch.randn(len(batch), answers.rows.shape[1], generator=generator)))
