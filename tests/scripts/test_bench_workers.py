"""The benchmark of the worker pipeline measures what it says; how fast that is stands in no test."""

import json

import pytest
import torch

import harness
from image_files import write_images


@pytest.fixture(scope="module")
def script():
    return harness.script("bench_workers")


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path, {"train/cat": 2, "train/dog": 3})
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_writes_every_number(script, root, capsys, workers):
    numbers = {"workers": workers, "size": 16, "batch": 4, "images": 10, "prefetch": 3}
    given = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    assert script.main([str(root), *given, "--repeats", "2", "--json", str(root / "it.json")]) == 0
    result = json.loads((root / "it.json").read_text())
    assert {name: result[name] for name in numbers} == numbers
    assert result["files"] == 5
    assert list(result["pipelines"]) == ["plain", "ours", "delivered", "decoded"]
    shown = capsys.readouterr().out
    for name, row in result["pipelines"].items():
        low, high = sorted(row["images_per_second"])
        assert 0 < low <= row["median"] <= high
        assert row["ratio"] > 0
        assert name in shown
    assert result["pipelines"]["plain"]["ratio"] == 1


def test_the_pipelines_give_what_they_are_named_for(script, root, monkeypatch):
    options = script.parser().parse_args([str(root), "--workers", "0", "--size", "16", "--batch", "4"])
    folder = script.ImageFolder(root / "train")
    chosen = [0, 1, 2, 3, 4, 0]
    images, labels = zip(*script.plain(folder, chosen, options), strict=True)
    assert torch.cat(images).shape == (6, 3, 16, 16)
    assert torch.cat(images).min() < 0
    assert sorted(torch.cat(labels).tolist()) == [0, 0, 0, 1, 1, 1]
    ours = script.ours(folder, chosen, options, device="cpu", decoded=False)
    decoded = script.ours(folder, chosen, options, device="cpu", decoded=True)
    whole = list(ours)
    monkeypatch.setattr(script.Files, "decode", None)  # from here on nothing can be decoded
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole, decoded, strict=True))
    assert [batch.labels.tolist() for batch in decoded] == [batch.labels.tolist() for batch in whole]


def test_a_folder_without_images_is_named(script, tmp_path, capsys):
    assert script.main([str(tmp_path)]) == 1
    assert str(tmp_path / "train") in capsys.readouterr().err
