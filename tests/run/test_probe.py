"""Linear probes as the command line composes them: what is probed, what is written, and what reads it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import distill
import harness
from command_line import process
from distill.analysis.store import find_results, read_curve
from distill.analysis.table import group, markdown
from distill.errors import UserError
from distill.models.adapters import LogitNetwork
from distill.models.resnet import CifarResNet
from distill.run.named import Named, named_networks
from distill.run.probe import check_pooled

BASE = ("data=digits", "data.size=16", "data@trained_on=digits", "recipe.epochs=3", "recipe.batch_size=128")
KNOWN = {"num_classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder: a student alone, and a composite of a student and its teacher's classifier."""
    folder = tmp_path_factory.mktemp("runs")
    one_epoch = (*harness.SMALL, "recipe.epochs=1")
    harness.execute(harness.configure(*one_epoch, "distiller=none", "teacher=none", "seed=4"), folder / "alone")
    harness.execute(harness.configure(*one_epoch, "distiller=simkd", *harness.RANDOM_TEACHER), folder / "composite")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network of the catalogue, for 7 classes."""
    file = tmp_path_factory.mktemp("weights") / "resnet8.pth"
    torch.manual_seed(0)
    torch.save(CifarResNet(depth=8, widths=[16, 16, 32, 64], num_classes=7).state_dict(), file)
    return file


def probe(output: Path, *networks: str | Path, words: tuple[str, ...] = ()) -> list[Path]:
    return harness.probe(*BASE, f"networks=[{','.join(map(str, networks))}]", f"output={output}", *words)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# ---------------------------------------------------------------------- what is written


@pytest.fixture(scope="module")
def both(runs: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return probe(tmp_path_factory.mktemp("probes"), runs, f"resnet8:{weights}")


def test_files_and_names(both: list[Path], runs: Path, weights: Path) -> None:
    places = [tuple(folder.parts[-4:-1]) for folder in both]
    assert places == [
        ("digits", "none-resnet8", "none"),
        ("digits", "resnet8-resnet8", "simkd"),
        ("digits", "resnet8-resnet8", "teacher"),
    ]
    assert [folder.name.rpartition("_")[2] for folder in both] == ["seed4", "seed0", "seed0"]
    for folder, source in zip(both, (runs / "alone", runs / "composite", weights), strict=True):
        assert {path.name for path in folder.iterdir()} == {"config.yaml", "metrics.csv", "result.json"}
        file = source if source.suffix else source / "student.safetensors"
        assert harness.yaml(folder / "config.yaml")["source"]["weights"] == str(file)
        assert result(folder)["probe"]["source"] == file.name


def test_result_agrees_with_metrics(both: list[Path]) -> None:
    (found, *_), skipped = find_results(both)
    assert not skipped
    assert (found.kind, found.epochs, found.seed, found.evaluated_on) == ("probe", 3, 4, "test")
    for metric in ("top1", "top5"):
        curve = read_curve(found, metric)
        assert list(curve) == [1, 2, 3]
        assert getattr(found.last, metric) == curve[3]
        assert getattr(found.best, metric) == curve[found.best.epoch]
    assert found.best.top1 == max(read_curve(found).values())
    assert found.content["parameters"]["extra"] == (8 + 1) * 10
    assert found.content["probe"]["training_images"] == 1438


def test_a_composite_is_probed_at_what_its_classifier_reads(both: list[Path], runs: Path) -> None:
    composite = distill.load(runs / "composite")
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        answer = composite(images)
        assert torch.allclose(composite.reader.classifier(answer.pooled), answer.logits)
    assert result(both[1])["probe"]["features"] == answer.pooled.shape[1]


def test_what_differs_from_a_full_run_and_our_protocol_names_the_row(both: list[Path]) -> None:
    rows, _ = group(find_results(both)[0])
    words = "recipe.batch_size=128 data.size=16 data@trained_on=digits"
    assert [(row.label, row.pair, row.seeds) for row in rows] == [
        (f"none recipe.epochs=1 {words}", "resnet8", [4]),
        (f"simkd recipe.epochs=1 {words}", "resnet8 → resnet8", [0]),
        (f"teacher {words}", "resnet8", [0]),
    ]


def test_probed_alone_or_together_with_others(both: list[Path], runs: Path, tmp_path: Path) -> None:
    (again,) = probe(tmp_path, runs / "composite")
    assert (again / "metrics.csv").read_bytes() == (both[1] / "metrics.csv").read_bytes()
    assert result(again)["hash"] == result(both[1])["hash"]


def test_a_finished_probe_is_left_alone(both: list[Path], runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (both[1] / "result.json").stat().st_mtime_ns
    with caplog.at_level("INFO", logger="distill"):
        found = probe(both[1].parents[3], runs / "composite", words=("seed=[0,1]",))
    assert found[0] == both[1]
    assert (both[1] / "result.json").stat().st_mtime_ns == before
    assert f"resnet8 → resnet8, simkd, seed 0: finished already, see {both[1]}" in caplog.messages
    assert "359 test images of 16 px (published probes look at 32 px), protocol ours, precision 32-true" in caplog.text
    assert result(found[1])["seed"] == 1
    assert (found[1] / "metrics.csv").read_text() != (both[1] / "metrics.csv").read_text()
    shutil.rmtree(found[1])


def test_a_changed_number_or_other_images_are_another_probe(both: list[Path], runs: Path) -> None:
    hashes = {result(both[1])["hash"]}
    for words in (("recipe.lr=0.1",), ("data.size=12",), ("probe.init_std=null",), ("data.holdout=100",)):
        (folder,) = probe(both[1].parents[3], runs / "composite", words=words)
        hashes.add(result(folder)["hash"])
        shutil.rmtree(folder)
    assert len(hashes) == 5


def test_networks_are_never_changed(both: list[Path], runs: Path) -> None:
    (folder,) = probe(
        both[0].parents[3], runs / "alone", words=("protocol=distillers", "probe.normalisation=data", "seed=0")
    )
    shutil.rmtree(folder)
    (again,) = probe(both[0].parents[3], runs / "alone", words=("recipe.lr=.04", "seed=4"))
    assert result(again)["probe"]["source_hash"] == result(both[0])["probe"]["source_hash"]
    shutil.rmtree(again)


@pytest.mark.parametrize("protocol", ["distillers", "catkd"])
def test_a_public_protocol_is_a_row_of_its_own(protocol: str, runs: Path, tmp_path: Path) -> None:
    words = (f"protocol={protocol}", "probe.normalisation=data", "recipe.epochs=2")
    first, second = (probe(tmp_path / name, runs / "alone", words=words)[0] for name in ("a", "b"))
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()
    found = result(first)
    assert found["probe"]["protocol"] == protocol
    assert f"protocol={protocol}" in found["variant"]
    assert found["epochs"] == 2


# ---------------------------------------------------------------------- what is probed


def test_one_network_said_in_several_ways(runs: Path, weights: Path) -> None:
    def said(*entries: object) -> list[tuple[str, ...]]:
        found = named_networks(list(entries), data=KNOWN, trained_on="digits")
        return [(one.teacher, one.student, one.distiller, one.variant, str(one.file)) for one in found]

    file = str(runs / "composite/student.safetensors")
    run = said(str(runs / "composite"))
    assert run == said(file) == said({"source": file})
    assert run[0][:4] == ("resnet8", "resnet8", "simkd", "recipe.epochs=1")
    assert said(str(runs)) == said(str(runs / "alone"), str(runs / "composite"))
    assert said({"source": file, "label": "mine", "teacher": "theirs"})[0][:3] == ("theirs", "mine", "simkd")
    plain = said(f"resnet8:{weights}")
    assert plain == said({"name": "resnet8", "weights": str(weights)})
    assert plain == [("resnet8", "resnet8", "teacher", "", str(weights))]
    baseline = {"name": "resnet8", "weights": str(weights), "distiller": "none", "teacher": "resnet56"}
    assert said(baseline)[0][:3] == ("resnet56", "resnet8", "none")
    assert said({"source": f"resnet8:{weights}", "label": "mine"})[0][:3] == ("mine", "mine", "teacher")
    (light,) = named_networks([{"source": file, "label": "mine"}], data=KNOWN, trained_on="digits")
    assert (light.student, light.catalogue) == ("mine", "resnet8")
    best = said(str(runs / "alone/best.ckpt"))
    assert best[0][:4] == ("none", "resnet8", "none", "recipe.epochs=1 best.ckpt")


def test_a_file_that_was_moved_says_what_it_is(runs: Path, tmp_path: Path) -> None:
    moved = shutil.copy(runs / "alone/student.safetensors", tmp_path / "moved.safetensors")
    (found,) = named_networks([str(moved)], data=KNOWN, trained_on="cifar100")
    assert (found.teacher, found.student, found.distiller, found.trained_on) == ("none", "resnet8", "none", "digits")


def test_a_network_of_the_catalogue_looks_as_at_the_data_that_it_knows(weights: Path) -> None:
    (found,) = named_networks([f"resnet8:{weights}"], data=KNOWN, trained_on="digits")
    assert found.network.mean.flatten().tolist() == [0.5] * 3
    assert found.network.classifier.out_features == 7  # whatever the data sets have


def test_student_and_its_weights(weights: Path, tmp_path: Path) -> None:
    words = (*BASE, f"output={tmp_path}", "student=resnet8", f"student.weights={weights}")
    (folder,) = harness.probe(*words)
    (same,) = probe(tmp_path, f"resnet8:{weights}")
    assert folder == same  # finished already


# ---------------------------------------------------------------------- tables


def test_a_tables_paper_numbers_are_those_of_tables_8_and_9(runs: Path, tmp_path: Path) -> None:
    (folder,) = probe(tmp_path, runs / "composite")
    content = result(folder)
    pairs = {("resnet32x4", "resnet8x4", "mcld"): 70.61, ("none", "resnet8x4", "none"): 65.18}
    pairs |= {("resnet110", "resnet110", "teacher"): 63.99}
    for number, (teacher, student, distiller) in enumerate(pairs):
        names = {"data": "stl10", "teacher": teacher, "student": student, "distiller": distiller}
        place = tmp_path / "made" / str(number)
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps({**content, "names": names, "variant": ""}))
    rows, notes = group(find_results([tmp_path / "made"])[0])
    assert {(row.teacher, row.student, row.distiller): row.paper("top1")[0][1] for row in rows} == pairs
    text = markdown(rows, notes)
    assert "## linear probe, stl10, 3 epochs, test set" in text
    assert "The paper's number comes from a protocol that it does not state; no difference is taken." in text
    assert "| resnet110 | teacher |" in text


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "There is nothing to probe: say networks=[RUN_FOLDER,NAME:FILE,...], or student=NAME student.weights"),
        (("networks=3",), "networks=3 must be a list, of a run's folder or one of its files, NAME:FILE, "),
        (("networks=[3]",), "networks=3 is none of a run's folder"),
        (("networks=[absent]",), "networks=absent does not exist, and is no network of the catalogue: give a run's"),
        (("networks=[resnet8:absent.pth]",), "absent.pth does not exist: give the path of a weights file"),
        (("networks=[resnet9:absent.pth]",), "no network is called 'resnet9'; choose one of resnet"),
        (("networks=[resnet8]",), "resnet8 has no weights at weights/digits/resnet8.safetensors: name a file with"),
        (("networks=[{sorce: x}]",), "There is no key sorce in networks: an entry has source, "),
        (("networks=[{label: x}]",), "networks={'label': 'x'} must have a source, or a name with weights."),
        (("networks=[{source: x, weights: y}]",), "networks={'source': 'x', 'weights': 'y'}: weights go with a name"),
        (("student=resnet8",), "student.weights=FILE is missing: the features of a network with random weights"),
        (("networks=[x]", "seed=one"), "seed=one must be a whole number, a list of them, or null"),
        (("networks=[x]", "seed=[1,1]"), "seed=[1, 1] names a seed twice."),
        (("networks=[x]", "recipe.epochs=0"), "recipe.epochs=0 must be a whole number of at least 1."),
        (("networks=[x]", "recipe.accumulate=2"), "recipe.accumulate must be 1: "),
        (("networks=[x]", "+probe.momentun=0"), "There is no key probe.momentun: LinearProbe takes momentum, "),
        (("networks=[x]", "probe.norms=thawed"), "probe.norms=thawed does not fit: LinearProbe takes one of frozen,"),
        (("networks=[x]", "+optimizer.momentum=0"), "There is no key optimizer: the configuration has "),
    ],
)
def test_words_that_cannot_be_probed(words: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError) as error:
        harness.probe(*BASE, *words)
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_folders_and_files_without_a_network(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no finished run: there is no student\.safetensors in it"):
        harness.probe(*BASE, f"networks=[{tmp_path}/empty]")
    with pytest.raises(UserError, match=r"resnet8\.pth does not say which network it holds: write NAME:.*resnet8\.pth"):
        harness.probe(*BASE, f"networks=[{weights}]")


def test_a_network_that_answers_with_logits_alone() -> None:
    network = LogitNetwork(module=nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)))
    one = Named(network, "theirs", "theirs", "theirs", "teacher", "", "digits", None, None)
    with pytest.raises(
        UserError, match=r"^theirs does not show what its classifier reads \(Output\.pooled is None\): "
    ):
        check_pooled(one, 16)


# ---------------------------------------------------------------------- the shell


def test_a_sweep_from_the_shell(weights: Path, tmp_path: Path) -> None:
    words = ("-m", "data=digits", "data.size=12,16", "recipe.epochs=1", f"networks=[resnet8:{weights}]")
    answer = process(*words, f"output={tmp_path}", "seed=2", script="probe")
    assert answer.code == 0, answer.error
    assert answer.out.count("## linear probe, digits, 1 epoch, test set") == 2
    found, _ = find_results([tmp_path])
    assert [(one.seed, one.variant) for one in found] == [(2, "data.size=12"), (2, "data.size=16")]


# ---------------------------------------------------------------------- real images


@pytest.mark.slow
def test_real_features_separate_real_images(tmp_path: Path) -> None:
    data = os.environ.get("DISTILL_DATA")
    if not data or not (Path(data) / "tiny-imagenet-200").exists():
        pytest.skip("needs DISTILL_DATA with tiny-imagenet-200/")
    (folder,) = harness.probe(
        *("data=tiny_imagenet", "data.complete=false", "recipe.epochs=30", f"output={tmp_path}"),
        f"networks=[resnet20:{harness.public_weights('resnet20')}]",
    )
    assert result(folder)["best"]["top1"] > 20  # of 200 classes; measured 23.6 to 23.7 on 10,000 + 5,000 images
