"""Weights files in every container, every refusal's sentence, and writing that leaves all or nothing."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from safetensors.torch import load_file
from torch import nn

from distill.checkpoint import (
    AtomicIO,
    key_hash,
    load_state,
    load_weights,
    read_metadata,
    read_state,
    save_atomically,
    save_safetensors,
)
from distill.errors import UserError


def net(classes=100, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, classes))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def prefixed(state, *prefixes):
    return {prefix + key: value for prefix in prefixes for key, value in state.items()}


CONTAINERS = {
    "bare": lambda s: s,
    "RepDistiller": lambda s: {"model": s, "epoch": 240, "accuracy": torch.tensor(72.3), "optimizer": {"state": {}}},
    "numpy scalar": lambda s: {
        "model": s,
        "best_acc": np.float64(72.34),
        "epoch": np.int64(240),
        "lr": np.float32(0.1),
    },
    "state_dict": lambda s: {"state_dict": s, "arch": "resnet"},
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "mdistiller": lambda s: {"model": prefixed(s, "module.student.") | prefixed(net().state_dict(), "module.teacher.")},
    "Lightning": lambda s: {"state_dict": prefixed(s, "student.") | {"distiller.queue": torch.zeros(3)}, "epoch": 1},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_reads_the_state_out_of_every_container(tmp_path, container, zipped):
    state = net().state_dict()
    torch.save(container(state), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert same(read_state(tmp_path / "w.pth"), state)


def test_takes_the_teacher_where_it_is_asked_for(tmp_path):
    student, teacher = net().state_dict(), net().state_dict()
    torch.save({"model": prefixed(student, "module.student.") | prefixed(teacher, "module.teacher.")}, tmp_path / "w")
    assert same(read_state(tmp_path / "w", part="teacher"), teacher)


def test_says_so_where_the_part_asked_for_is_not_there(tmp_path):
    torch.save({"state_dict": prefixed(net().state_dict(), "student.")}, tmp_path / "w.ckpt")
    with pytest.raises(UserError, match="holds no teacher, only a student"):
        read_state(tmp_path / "w.ckpt", part="teacher")


def test_keeps_the_names_of_a_composite_in_safetensors(tmp_path):
    state = {"student.weight": torch.ones(2), "projector.weight": torch.ones(3)}
    save_safetensors(state, tmp_path / "w.safetensors", {})
    assert same(read_state(tmp_path / "w.safetensors"), state)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_widens_half_precision_and_leaves_integers(tmp_path, name):
    state = {"a": torch.tensor([0.5, 2]).half(), "b": torch.tensor([0.5]).bfloat16(), "n": torch.tensor(3)}
    if name.endswith("pth"):
        torch.save(state, tmp_path / name)
    else:
        save_safetensors(state, tmp_path / name, {})
    read = read_state(tmp_path / name)
    assert [read[key].dtype for key in "abn"] == [torch.float32, torch.float32, torch.int64]
    assert read["a"].tolist() == [0.5, 2]


# ---------------------------------------------------------------------- refusals of a file


class Trap:
    """Its pickle would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_refuses_objects_and_does_not_run_them(tmp_path):
    torch.save({"model": net().state_dict(), "extra": Trap(tmp_path / "sprung")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds objects that a safe load refuses \(\w+\.mkdir\)"):
        read_state(tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_refuses_a_whole_module(tmp_path):
    torch.save(net(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"safe load refuses \(torch.nn.modules.*state_dict alone"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "found a list"),
        (torch.ones(2), "found a Tensor"),
        ({}, "an empty dictionary"),
        ({"model": {}}, "an empty dictionary"),
        ({"epoch": 3, "loss": 0.5}, "a dictionary with epoch, loss"),
        ({"student": {"weight": torch.ones(2)}}, "a dictionary with student"),
    ],
)
def test_refuses_what_is_no_state_dict(tmp_path, content, found):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"holds no state_dict.*{found}"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_says_which_file_is_absent(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name} does not exist"):
        read_state(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} does not exist"):
        read_metadata(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-40], lambda b: b[:5], lambda b: b"", lambda b: b"<html>404</html>" * 9]
)
def test_says_which_file_is_damaged(tmp_path, name, damage):
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(net().state_dict(), path)
    else:
        save_safetensors(net(), path, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{name} is no .*damaged one"):
        read_state(path)


# ---------------------------------------------------------------------- loading


def saved(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_loads_what_was_saved(tmp_path):
    source, target = net(), net()
    load_weights(target, saved(tmp_path, source.state_dict()), what="teacher")
    assert same(target.state_dict(), source.state_dict())


def test_tolerates_the_absence_of_batchnorm_counters_only(tmp_path):
    source, target = net().state_dict(), net()
    del source["1.num_batches_tracked"]
    load_weights(target, saved(tmp_path, source), what="teacher")
    assert torch.equal(target.state_dict()["0.weight"], source["0.weight"])
    del source["1.running_mean"]
    with pytest.raises(UserError, match=r"teacher weights in .*w.pth do not fit: missing 1.running_mean\. "):
        load_weights(target, saved(tmp_path, source), what="teacher")


def test_names_what_is_missing_and_unexpected_and_counts_the_rest(tmp_path):
    state = prefixed(net().state_dict(), "backbone.")
    with pytest.raises(UserError) as caught:
        load_weights(net(), saved(tmp_path, state), what="student")
    assert "missing 0.weight, 0.bias, 1.weight, 1.bias and 4 more" in str(caught.value)
    assert "unexpected backbone.0.weight, backbone.0.bias, backbone.1.weight, backbone.1.bias and 5 more" in str(
        caught.value
    )


def test_says_which_shape_was_found_and_which_expected(tmp_path):
    with pytest.raises(
        UserError, match=r"other shapes: 0.weight is \(8, 3, 3, 3\), expected \(4, 3, 3, 3\), .* and 3 more"
    ):
        load_weights(net(width=4), saved(tmp_path, net(width=8).state_dict()), what="student")


def test_says_in_words_that_the_classes_differ(tmp_path):
    with pytest.raises(UserError, match="classifier has 10 classes, the data set has 100"):
        load_weights(net(100), saved(tmp_path, net(10).state_dict()), what="teacher")


def test_leaves_the_module_alone_where_weights_do_not_fit(tmp_path):
    target = net(100)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError):
        load_state(target, net(10).state_dict(), what="teacher", origin="w")
    assert same(target.state_dict(), before)


def test_hash_knows_names_shapes_and_order_but_no_values():
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(())}
    # sha256 of "a (2, 3)\nb ()", by sha256sum
    assert key_hash(state) == "0913e90a2377a1d6"
    assert key_hash({"a": torch.ones(2, 3), "b": torch.ones(())}) == key_hash(state)
    for other in ({"b": state["b"], "a": state["a"]}, {"a": state["a"]}, {**state, "b": torch.zeros(1)}):
        assert key_hash(other) != key_hash(state)


# ---------------------------------------------------------------------- writing


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "deep" / "w"
    save_atomically(target, lambda path: path.write_text("old"))

    def write(path):
        assert path.parent == target.parent
        path.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_atomically(target, write)
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["w"]


def test_the_target_holds_the_old_content_until_the_new_one_is_whole_and_on_disk(tmp_path, monkeypatch):
    target, seen = tmp_path / "w", []
    target.write_text("old")
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append((target.read_text(), _is_dir(handle))) or fsync(handle))
    save_atomically(target, lambda path: path.write_text("new"))
    assert seen == [("old", False), ("new", True)]


def _is_dir(handle):
    return stat.S_ISDIR(os.fstat(handle).st_mode)


def test_a_hard_link_onto_itself_leaves_no_second_name(tmp_path):
    (tmp_path / "last").write_text("x")
    for _ in range(2):
        save_atomically(tmp_path / "best", lambda path: os.link(tmp_path / "last", path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]


def test_safetensors_holds_tied_and_channels_last_weights_and_metadata(tmp_path):
    module = net().to(memory_format=torch.channels_last)
    module.tied = module[0]
    path = tmp_path / "sub" / "w.safetensors"
    save_safetensors(module, path, {"top1": "72.34"})
    assert same(load_file(path), module.state_dict())
    assert read_metadata(path) == {"top1": "72.34"}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_file_without_metadata_has_none(tmp_path):
    save_safetensors(net(), tmp_path / "w.safetensors", {})
    assert read_metadata(tmp_path / "w.safetensors") == {}


# ---------------------------------------------------------------------- Lightning


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(tmp_path, epochs):
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        plugins=[AtomicIO()],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_saves_and_resumes_through_it(tmp_path):
    data = torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=2)
    first, module = trainer(tmp_path, 1), Regression()
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "runs" / "last.ckpt")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["last.ckpt"]

    resumed, again = trainer(tmp_path, 2), Regression()
    resumed.fit(again, data, ckpt_path=tmp_path / "runs" / "last.ckpt", weights_only=False)
    assert resumed.global_step == 4
    assert not torch.equal(again.layer.weight, module.layer.weight)


def test_loads_safely_whatever_lightning_asks_for(tmp_path):
    torch.save({"state_dict": {}, "x": Trap(tmp_path / "sprung")}, tmp_path / "c.ckpt")
    with pytest.raises(UserError, match="safe load refuses"):
        AtomicIO().load_checkpoint(tmp_path / "c.ckpt", weights_only=False)
    assert not (tmp_path / "sprung").exists()


def test_a_failed_checkpoint_leaves_the_last_good_one(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"epoch": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicIO().save_checkpoint({"epoch": 2, "bad": lambda: None}, path)
    assert AtomicIO().load_checkpoint(path) == {"epoch": 1}
    assert list(Path(tmp_path).iterdir()) == [path]
