"""Kept teacher answers: who computed an answer, when, and what else was asked beside it must not matter."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import harness
from distill import answers as tables
from distill import zoo
from distill.answers import Answers, half
from distill.build import build_network, freeze
from distill.checkpoint import save_safetensors
from distill.data.resident import count_views, number_views, view_numbered
from distill.errors import UserError
from distill.frozen import fastest
from distill.kept import KeptTeacher, key_of, rows_on
from distill.models.network import Network
from distill.models.resnet import CifarResNet
from distill.types import Batch, Output
from image_files import write_images

CPU = torch.device("cpu")
ABOUT = {"teacher": "a test's"}


def rows_of(count: int, classes: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)).half()


class Counting(Network):
    """Answers with the first pixels, and notes the shapes that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, ...]] = []

    def answer(self, x: Tensor) -> Output:
        self.asked.append(tuple(x.shape))
        return Output(x.flatten(1)[:, :7].float() * 100)


def batch_of(names: list[int]) -> Batch:
    """Images that follow from their names."""
    names_ = torch.tensor(names)
    images = torch.stack([torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(n)) for n in names])
    return Batch(images, names_ % 2, names_, names=names_)


# ---------------------------------------------------------------------- the table


@pytest.fixture(params=["memory", "disk"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Answers:
    return Answers.in_memory(50, 7) if request.param == "memory" else Answers.on_disk(tmp_path / "t", ABOUT, 50, 7)


def test_rows_come_back_as_written_and_others_are_unknown(table: Answers) -> None:
    names, rows = torch.tensor([3, 49, 0]), rows_of(3)
    table.write(names, rows)
    found, known = table.read(torch.tensor([49, 7, 3, 0]))
    assert known.tolist() == [True, False, True, True]
    assert torch.equal(found[[2, 0, 3]], rows)
    assert table.known() == 3


def test_a_row_of_zeros_is_known_once_written(table: Answers) -> None:
    assert not table.read(torch.tensor([5]))[1].any()
    table.write(torch.tensor([5]), torch.zeros(1, 7).half())
    assert table.read(torch.tensor([5]))[1].all()


@pytest.mark.parametrize("bit", range(16))
def test_a_damaged_row_is_unknown(table: Answers, bit: int) -> None:
    table.write(torch.arange(50), rows_of(50))
    damage = torch.tensor(1 << bit if bit < 15 else -(1 << 15), dtype=torch.int16)
    for column in range(7):
        table.rows[column].view(torch.int16)[column] ^= damage
    known = table.read(torch.arange(50))[1]
    assert not known[:7].any()
    assert known[7:].all()


def test_two_opened_tables_are_one(tmp_path: Path) -> None:
    one, other = (Answers.on_disk(tmp_path / "t", ABOUT, 50, 7) for _ in range(2))
    one.write(torch.arange(4), rows_of(4))
    rows, known = other.read(torch.arange(5))
    assert known.tolist() == [True] * 4 + [False]
    assert torch.equal(rows[:4], rows_of(4))


def test_an_unfinished_making_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / tables.ROWS).write_bytes(b"\1" * 40)  # of a process that was killed before it said that it was done
    table = Answers.on_disk(folder, ABOUT, 50, 7)
    assert table.known() == 0
    assert (folder / tables.ROWS).stat().st_size == 2 * 50 * 7


def test_room_is_taken_at_once_and_its_lack_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Answers.on_disk(tmp_path / "made", ABOUT, 5000, 100)
    assert (tmp_path / "made" / tables.ROWS).stat().st_blocks * 512 >= 5000 * 200

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot hold 10\.20 GB .*No space left.*teacher\.keep_in"):
        Answers.on_disk(tmp_path / "t", ABOUT, 50_000_000, 100)
    assert not list((tmp_path / "t").glob("*.[fi]*"))


def test_a_table_beyond_memory_is_refused() -> None:
    with pytest.raises(UserError, match=r"would grow to [\d.]+ GB .*choose teacher\.keep=disk"):
        Answers.in_memory(10**12, 100)


def test_half_stays_finite() -> None:
    assert half(torch.tensor([1e9, -1e9, 1.0])).isfinite().all()


WRITER = """
import sys, torch
from pathlib import Path
from distill.answers import Answers
table = Answers.on_disk(Path(sys.argv[1]), {}, 50_000, 7)
rows = torch.randn(50_000, 7, generator=torch.Generator().manual_seed(0)).half()
order = torch.randperm(50_000, generator=torch.Generator().manual_seed(int(sys.argv[2])))
print("open", flush=True)
while True:
    for names in order.split(64):
        table.write(names, rows[names])
    table.seals.zero_()
"""


def test_concurrent_writers_killed_at_any_moment_leave_no_wrong_row(tmp_path: Path) -> None:
    path = os.pathsep.join([str(harness.ROOT / "src")])
    command = [sys.executable, "-c", WRITER, str(tmp_path / "t")]
    writers = [
        subprocess.Popen([*command, seed], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
        for seed in "12"
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == b"open\n"
    table, right, seen = Answers.on_disk(tmp_path / "t", {}, 50_000, 7), rows_of(50_000), 0

    def look() -> int:
        rows, known = table.read(torch.arange(50_000))
        assert torch.equal(rows[known], right[known])
        return int(known.sum())

    for _ in range(10):
        seen = max(seen, look())
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    look()
    assert seen > 0


# ---------------------------------------------------------------------- the teacher


def test_known_views_are_not_asked_again_and_passes_have_one_shape() -> None:
    network = Counting()
    teacher = KeptTeacher(network, Answers.in_memory(100, 7))
    first = teacher.ask(batch_of([5, 9, 31])).logits
    again = teacher.ask(batch_of([31, 5, 77])).logits
    teacher.ask(batch_of(list(range(40))))
    rows = rows_on(CPU)
    assert network.asked == [(rows, 3, 4, 4)] * (1 + 1 + -(-37 // rows))
    assert torch.equal(again[:2], first[[2, 0]])
    expected = half(Counting()(batch_of([5, 9, 31]).images).logits).float()
    assert torch.equal(first, expected)


def test_a_full_table_asks_nobody() -> None:
    network = Counting()
    teacher = KeptTeacher(network, Answers.in_memory(100, 7))
    teacher.ask(batch_of([1, 2, 3]))
    network.asked.clear()
    teacher.ask(batch_of([3, 1]))
    assert network.asked == []


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv1", "cifar_resnet18"])
def test_a_views_bits_do_not_depend_on_the_rest_of_its_batch(name: str, precision: str) -> None:
    entry = zoo.by_name(name)
    node = {"_target_": entry.target, **entry.arguments, "num_classes": 7}
    plain = build_network(node, what="teacher", num_classes=7, mean=[0.5] * 3, std=[0.2] * 3, seed=0)
    network = fastest(freeze(plain), precision=precision, device=CPU, size=32, compiled=False)
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def ask(names: list[int], teacher: KeptTeacher) -> Tensor:
        chosen = torch.tensor(names)
        return teacher.ask(Batch(images[chosen], chosen, chosen, names=chosen)).logits

    whole = ask(list(range(20)), KeptTeacher(network, Answers.in_memory(20, 7)))
    pieces = KeptTeacher(network, Answers.in_memory(20, 7))
    ask([7, 3, 19], pieces)
    ask([4, 3, 2, 1, 0, 12], pieces)
    assert torch.equal(ask(list(range(19, -1, -1)), pieces).flip(0), whole)


def test_a_key_tells_every_weight_and_every_circumstance_apart() -> None:
    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))

    key = key_of(network(), {"data": "a", "precision": "32-true"})
    assert key == key_of(network(), {"precision": "32-true", "data": "a"})
    assert key != key_of(network(), {"data": "b", "precision": "32-true"})
    for name, tensor in network().state_dict().items():
        other = network()
        changed = other.state_dict()[name]
        changed.view(-1)[0] = (
            changed.view(-1)[0] + 1 if tensor.dtype is torch.long else changed.view(-1)[0].nextafter(torch.tensor(9.0))
        )
        assert key_of(other, {"data": "a", "precision": "32-true"}) != key, name


# ---------------------------------------------------------------------- whole runs

RUN = (*harness.SMALL, *harness.RANDOM_TEACHER, "distiller=mcld", "distiller.queue_length=300")


def weights_in(folder: Path) -> str:
    """A teacher's weights in a file, the same for every seed."""
    teacher = CifarResNet(depth=8, widths=[4, 4, 8, 8], num_classes=10)
    save_safetensors(teacher, folder / "teacher.safetensors", {})
    return f"teacher.weights={folder / 'teacher.safetensors'}"


def test_runs_end_bit_equal_whatever_was_known_before(tmp_path: Path) -> None:
    """From nothing, in memory or on disk, from another seed's answers, and from all of them."""
    run = (*RUN, weights_in(tmp_path))
    kept = ("teacher.keep=disk", f"teacher.keep_in={tmp_path / 'kept'}")
    harness.execute(harness.configure(*run, "teacher.keep=memory"), tmp_path / "memory")
    harness.execute(harness.configure(*run, *kept, "seed=1"), tmp_path / "other")
    harness.execute(harness.configure(*run, *kept), tmp_path / "partly")
    harness.execute(harness.configure(*run, *kept), tmp_path / "known")
    assert len(list((tmp_path / "kept/digits").iterdir())) == 1
    one = harness.state(tmp_path / "memory")
    for run in ("partly", "known"):
        other = harness.state(tmp_path / run)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_killed_run_resumes_with_equal_bits(tmp_path: Path) -> None:
    config = harness.configure(*RUN, "teacher.keep=memory", "checkpoint.steps=2")
    harness.execute(config, tmp_path / "whole")
    harness.execute(config, tmp_path / "cut", kill_at=9)
    harness.execute(config, tmp_path / "cut")
    one, other = harness.state(tmp_path / "whole"), harness.state(tmp_path / "cut")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_another_teacher_never_meets_the_answers(tmp_path: Path) -> None:
    kept = ("teacher.keep=disk", f"teacher.keep_in={tmp_path / 'kept'}", "recipe.epochs=1")
    for number, change in enumerate(
        ("seed=0", "teacher.widths=[4,4,8,12]", "data.padding=1", "teacher.mean=[0.1,0.1,0.1]", "data.holdout=100")
    ):
        harness.execute(harness.configure(*RUN, *kept, change), tmp_path / str(number))
        assert len(list((tmp_path / "kept/digits").iterdir())) == number + 1


def test_answers_computed_ahead_are_those_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = harness.script("keep")
    run = (*RUN, weights_in(tmp_path))
    kept = [f"teacher.keep_in={tmp_path / 'kept'}", *run]
    assert keep.main(["--seeds", "0,3", *kept]) == 0
    assert 0 < float(re.search(r"([\d.]+) % of all views", capsys.readouterr().out)[1]) < 20
    harness.execute(harness.configure(*run, "teacher.keep=memory"), tmp_path / "memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptTeacher, "_answer", None)  # nothing is left to compute
        harness.execute(harness.configure(*kept, "teacher.keep=disk"), tmp_path / "ahead")
    one, other = harness.state(tmp_path / "memory"), harness.state(tmp_path / "ahead")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert keep.fill(kept, [], everything=True) == 1
    assert keep.main([*harness.SMALL, *harness.RANDOM_TEACHER, "distiller=none"]) == 1
    assert "There are no answers to keep" in capsys.readouterr().err
    assert keep.main(["teacher=resnet57"]) == 1
    assert capsys.readouterr().err.startswith("teacher=resnet57 is unknown: choose one of ")


def test_every_view_has_one_number() -> None:
    for flip in (False, True):
        count = count_views(padding=2, flip=flip)
        views = view_numbered(torch.arange(count), padding=2, flip=flip)
        assert len({tuple(view) for view in views.tolist()}) == count
        assert number_views(views, padding=2, flip=flip).tolist() == list(range(count))


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.keep=ram is unknown: choose one of off, memory, disk"):
        harness.execute(harness.configure(*RUN, "teacher.keep=ram"), tmp_path)
    config = harness.configure(*RUN, "teacher.keep=memory")
    config["distiller"] = {"_target_": "methods.Borrows", "weight": 1.0}
    with pytest.raises(UserError, match=r"reads feature maps: set teacher\.keep=off"):
        harness.execute(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_views_without_number_cannot_be_kept(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "images" / split, {"a": 2, "b": 2})
    small = (*harness.RANDOM_TEACHER, "student=resnet8", "recipe.epochs=1", "data.size=16")
    config = harness.configure("data=folder", f"data.root={tmp_path / 'images'}", *small, "teacher.keep=memory")
    with pytest.raises(UserError, match=r"data=folder are without number: set teacher\.keep=off"):
        harness.execute(config, tmp_path)
