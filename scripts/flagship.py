"""The flagship in one command: a ResNet32x4 teacher by a short recipe, then ResNet8x4 taught by it with MCLD.

python scripts/flagship.py                                   both, to the end
python scripts/flagship.py --minutes 9.5                     a slice; exit code 75 says: repeat the same command
python scripts/flagship.py --teacher-weights FILE            the student alone, with a teacher that is there already
python scripts/flagship.py --teacher-weights FILE --set-student seed=1 --root outputs/flagship_seed1

The runs are those of src/train.py, in --root/teacher and --root/student. However a call was stopped, the same command
goes on from the last checkpoints; what is finished is not run again. What is to be kept goes to --out: result.json and
metrics.csv of both, and the teacher's weights in float16. A report ends it.
"""

import argparse
import csv
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from distill.analysis import paper
from distill.analysis.store import Result, Score, find_results
from distill.analysis.table import SPLITS
from distill.errors import UserError
from distill.files import LAST, METRICS, RESULT, STUDENT, TEACHER

TRAIN = Path(__file__).resolve().parents[1] / "src" / "train.py"
TEACHER_RUN = ("experiment=flagship_teacher",)
# spelt out rather than experiment=flagship, which is the same run but would be another row of the table
STUDENT_RUN = ("distiller=mcld", "teacher=resnet32x4", "student=resnet8x4")
TEACHER_NAME, DATA_NAME = "resnet32x4", "cifar100"
MINUTES = 1  # between checkpoints within an epoch
GRACE = 10.0  # seconds that a run has to end when it is told to
MOST = 16 * 2**20  # bytes of a weights file that git may keep
REPEAT = os.EX_TEMPFAIL
COMMAND = "command.json"
# what resume= lets change: where things lie and run
MAY_CHANGE = ("trainer.", "logger.", "checkpoint.", "data.root=", "data.workers=", "teacher.weights=")


class NotFinishedError(Exception):
    """The time of this call is over before the work is."""


@dataclass(frozen=True)
class Stage:
    """One of the two runs.

    Attributes:
        name: "teacher" or "student".
        folder: Of the run.
        words: The command line that begins it, without its folder.
        weights: Of the teacher that it learns from.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    weights: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / RESULT).exists()

    @property
    def begun(self) -> bool:
        """Whether there is something to go on from."""
        return (self.folder / LAST).exists()


@dataclass(frozen=True)
class Clock:
    """The time of this call.

    Attributes:
        began: In seconds of `time.monotonic`.
        minutes: Within which the call is to end; None for no end.
    """

    began: float
    minutes: float | None

    def left(self) -> float | None:
        """Seconds until the run must be told to end."""
        if self.minutes is None:
            return None
        return max(0.0, self.began + 60 * self.minutes - GRACE - time.monotonic())

    def spent(self) -> float:
        """Minutes so far."""
        return (time.monotonic() - self.began) / 60


# ---------------------------------------------------------------------- the two runs


def quoted(key: str, path: Path) -> str:
    """A path as a word of a command line that Hydra reads, whatever characters it has."""
    text = str(path.resolve()).replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{text}"'


def stages(options: argparse.Namespace) -> tuple[Stage | None, Stage]:
    """The teacher's run, None where its weights are given, and the student's."""
    shared = [f"checkpoint.minutes={MINUTES}"]
    shared += [f"trainer.accelerator={options.device}"] if options.device else []
    shared += options.set
    teacher = None
    if options.teacher_weights is None:
        epochs = [f"recipe.epochs={options.teacher_epochs}"] if options.teacher_epochs else []
        words = (*TEACHER_RUN, *epochs, *shared, *options.set_teacher)
        teacher = Stage("teacher", options.root / "teacher", words)
        weights = options.out / "weights" / _data(words) / f"{TEACHER_NAME}.safetensors"
    else:
        weights = options.teacher_weights
    epochs = [f"recipe.epochs={options.student_epochs}"] if options.student_epochs else []
    words = (*STUDENT_RUN, quoted("teacher.weights", weights), *epochs, *shared, *options.set_student)
    return teacher, Stage("student", options.root / "student", words, weights)


def _data(words: Sequence[str]) -> str:
    return next((word.split("=", 1)[1] for word in reversed(words) if word.startswith("data=")), DATA_NAME)


def command(stage: Stage) -> list[str]:
    """The words for src/train.py that begin a run, or go on with it."""
    if stage.begun:
        return [quoted("resume", stage.folder), *(word for word in stage.words if word.startswith(MAY_CHANGE))]
    return [*stage.words, quoted("hydra.run.dir", stage.folder)]


def identity(stage: Stage) -> dict[str, Any]:
    """What decides a run's result, as far as this script knows."""
    digest = None
    if stage.weights is not None:
        with stage.weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"words": [word for word in stage.words if not word.startswith(MAY_CHANGE)], "teacher": digest}


def carry_out(stage: Stage, clock: Clock, lock: IO[str]) -> None:
    """Begin a run, or go on with it, to its end.

    Raises:
        NotFinishedError: If the time is over before.
        UserError: If the run in the folder is another one, or fails.
    """
    wanted, record = identity(stage), stage.folder / COMMAND
    if (stage.finished or stage.begun) and record.exists() and (had := json.loads(record.read_text())) != wanted:
        differs = sorted(set(had["words"]) ^ set(wanted["words"])) or ["its teacher"]
        raise UserError(
            f"{stage.folder} holds a run of another command ({', '.join(differs)} differs): repeat that one, "
            "or name another --root."
        )
    if stage.finished:
        return
    if clock.left() == 0:
        raise NotFinishedError
    if not stage.begun:
        stage.folder.mkdir(parents=True, exist_ok=True)
        (stage.folder / TEACHER).unlink(missing_ok=True)  # scores, perhaps of a teacher that was named before
        record.write_text(json.dumps(wanted, indent=2) + "\n")
    print(f"{stage.name}: {'goes on' if stage.begun else 'begins'} in {stage.folder}", flush=True)
    line = [sys.executable, str(TRAIN), *command(stage)]
    code = run(line, clock.left(), lock)
    if stage.finished:
        return
    if code is None:
        raise NotFinishedError
    raise UserError(
        f"The {stage.name}'s run ended with exit code {code} and says why above; once that is put right, the same "
        "command goes on."
    )


def run(line: Sequence[str], seconds: float | None, lock: IO[str]) -> int | None:
    """A process, ended with this one or when its time is over.

    Args:
        line: The command.
        seconds: After which it is told to end, and `GRACE` later made to; its checkpoints bear both.
        lock: Stays locked while the process lives, even where this one is killed.

    Returns:
        Its exit code; None if its time was over.
    """
    process = subprocess.Popen(line, pass_fds=(lock.fileno(),))
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def alone(root: Path) -> Iterator[IO[str]]:
    """Hold a folder for this process and those it starts.

    Raises:
        UserError: If another holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"Another process is at work in {root}: wait for it, or end it.") from error
        yield lock


# ---------------------------------------------------------------------- what is kept


def result_of(stage: Stage) -> Result:
    """What a finished run has written.

    Raises:
        UserError: If it cannot be read.
    """
    found, skipped = find_results([stage.folder / RESULT])
    if not found:
        raise UserError(f"{stage.folder / RESULT} does not count: {skipped[0].reason}.")
    return found[0]


def keep_weights(result: Result, target: Path) -> None:
    """Write what a run trained, in float16, with all that is needed to rebuild and judge it.

    Raises:
        UserError: If there is another network, it is too large, or float16 cannot hold it.
    """
    import torch  # seconds, of which --help and a mistake need none

    from distill.checkpoint import read_metadata, read_state, save_safetensors

    source = result.path.with_name(STUDENT)
    state = {k: v.half() if v.is_floating_point() else v for k, v in read_state(source).items()}
    if strange := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise UserError(f"{source} cannot be kept in float16: {strange[0]} holds numbers beyond 65,504.")
    if (size := sum(value.nbytes for value in state.values())) > MOST:
        raise UserError(f"{source} has {size / 2**20:.1f} MiB in float16, more than the {MOST >> 20} that are kept.")
    metadata = read_metadata(source) | {
        "top1": f"{result.last.top1:.2f}",
        "best_top1": f"{result.best.top1:.2f}",
        "evaluated_on": result.evaluated_on,
        "epochs": str(result.epochs),
        "seed": str(result.seed),
        "dtype": "float16",
        "commit": str(result.content.get("commit")),
        "source": "scripts/flagship.py",
    }
    if target.exists():
        there = read_state(target)
        if there.keys() != state.keys() or any(not torch.equal(there[key], state[key].to(there[key])) for key in state):
            raise UserError(_taken(target))
        return
    save_safetensors(state, target, metadata)


def _taken(target: Path) -> str:
    return f"{target} holds another teacher: use it with --teacher-weights, or name another --out."


def publish(result: Result, out: Path) -> None:
    """Keep a run's result.json and metrics.csv."""
    from publish import publish as keep  # beside this script, where Python looks first

    print(f"{result.path.parent.name}: kept in {keep(result, out)}", flush=True)


# ---------------------------------------------------------------------- what is said


def progress(stage: Stage) -> str:
    """How far a run has come, in words."""
    if stage.finished:
        return f"the {stage.name} is finished"
    if not stage.begun:
        return f"the {stage.name} has no checkpoint yet"
    try:
        with (stage.folder / METRICS).open(newline="") as file:
            epoch = max((int(float(row["epoch"])) for row in csv.DictReader(file)), default=0)
    except OSError:
        epoch = 0
    return f"the {stage.name} has a checkpoint after epoch {epoch} or later"


def report(teacher: Result | None, student: Result) -> str:
    """Both runs beside the paper's numbers, as Markdown."""
    of = (student.data, student.teacher, student.student)
    published = {
        "teacher": paper.published(*of, "teacher"),
        "student": paper.published(*of, student.distiller),
    }
    lines = [
        "| network | epochs | best top-1 (epoch) | last top-1 | paper | minutes | images/s | device |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    if teacher is not None:
        lines.append(_line(f"teacher {teacher.student}", teacher, published["teacher"]))
    method = f"{student.distiller} {student.variant}".strip()
    lines.append(_line(f"student {student.student}, {method}", student, published["student"]))
    if student.teacher_top1 is not None:
        differences = [_signed(score, student.teacher_top1) for score in (student.best, student.last)]
        line = f"student - teacher: best {differences[0]}, last {differences[1]}"
        if published["student"] is not None and published["teacher"] is not None:
            line += f", paper {published['student'] - published['teacher']:+.2f}"
        lines += ["", f"{line}; the teacher that the student saw has top-1 {student.teacher_top1:.2f}."]
    note = f"Scores on the {SPLITS.get(student.evaluated_on)}. Minutes are those of training, evaluations included."
    if any(published.values()):
        note += f" The paper trains both networks for {paper.EPOCHS[student.data]} epochs."
    return "\n".join([*lines, "", note])


def _line(what: str, result: Result, published: float | None) -> str:
    rate = result.images_per_second
    cells = [
        what,
        str(result.epochs),
        f"{result.best.top1:.2f} ({result.best.epoch})",
        f"{result.last.top1:.2f}",
        "–" if published is None else f"{published:.2f}",
        f"{result.content['seconds'] / 60:.1f}",
        "–" if rate is None else f"{rate:,.0f}",
        f"{result.content['device']}, {result.content['precision']}",
    ]
    return f"| {' | '.join(cells)} |"


def _signed(score: Score, teacher: float) -> str:
    return f"{round(score.top1 - teacher, 2) + 0.0:+.2f}"  # + 0.0: no "-0.00"


# ---------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""

    def positive(kind: type) -> Any:
        def read(text: str) -> Any:
            if (value := kind(text)) <= 0:
                raise ValueError
            return value

        read.__name__ = {int: "positive whole number", float: "positive number"}[kind]
        return read

    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--minutes", type=positive(float), metavar="N", help="end this call within so many (no limit)")
    result.add_argument("--teacher-epochs", type=positive(int), metavar="N", help="instead of the recipe's")
    result.add_argument("--student-epochs", type=positive(int), metavar="N", help="instead of the paper's")
    result.add_argument("--teacher-weights", type=Path, metavar="FILE", help="train no teacher, use this one")
    result.add_argument("--root", type=Path, default=Path("outputs/flagship"), help="of the runs (outputs/flagship)")
    result.add_argument("--out", type=Path, default=Path("outputs/published"), help="what is kept (outputs/published)")
    result.add_argument("--device", help="trainer.accelerator of both runs: auto, cpu, gpu, ...")
    for option, of in (("--set", "both runs"), ("--set-teacher", "the teacher's"), ("--set-student", "the student's")):
        text = f"an override for src/train.py in {of}; may be repeated"
        result.add_argument(option, action="append", default=[], metavar="KEY=VALUE", help=text)
    return result


def flagship(options: argparse.Namespace, clock: Clock) -> None:
    """All of it, as far as the time allows.

    Raises:
        NotFinishedError: If the time is over before.
        UserError: If something was asked for that cannot be, or a run fails.
    """
    first, second = stages(options)
    assert second.weights is not None
    if first is None and not second.weights.is_file():
        raise UserError(f"--teacher-weights {second.weights} does not exist.")
    if first is not None and not first.finished and second.weights.exists():
        raise UserError(_taken(second.weights))
    with alone(options.root) as lock:
        teacher = None
        if first is not None:
            carry_out(first, clock, lock)
            teacher = result_of(first)
            keep_weights(teacher, second.weights)
            publish(teacher, options.out)
        carry_out(second, clock, lock)
        student = result_of(second)
        publish(student, options.out)
    print(f"\n{report(teacher, student)} This call took {clock.spent():.1f}.")


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status: 0 done, 75 to be repeated, 1 for a mistake."""
    began = time.monotonic()
    options = parser().parse_args(arguments)
    clock = Clock(began, options.minutes)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # to end the run before this process ends
    try:
        flagship(options, clock)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except (NotFinishedError, KeyboardInterrupt):
        where = "; ".join(progress(stage) for stage in stages(options) if stage is not None)
        print(f"Not finished after {clock.spent():.1f} minutes: {where}. Repeat the command.", file=sys.stderr)
        return REPEAT
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
