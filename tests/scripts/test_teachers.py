"""Fetching from a real server that breaks off, unpacking an archive that cannot be trusted, and installing runs."""

import hashlib
import http.server
import importlib.util
import io
import json
import os
import re
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file

import harness
from distill import zoo
from distill.checkpoint import key_hash, read_metadata, save_safetensors
from distill.deploy import RECIPE, load, rebuild
from distill.errors import UserError
from distill.types import Output

SCRIPT = Path(__file__).parents[2] / "scripts" / "teachers.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("teachers_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def two(script):
    return (script.Teacher("resnet8", "resnet8", 60.0), script.Teacher("resnet14", "ResNet14", 65.0))


def pickled(script, name, **more):
    stream = io.BytesIO()
    torch.save({"model": script.build(name).state_dict(), "accuracy": np.float64(60.0), **more}, stream)
    return stream.getvalue()


def tar_of(members):
    """Bytes of a tar archive; a member may be bytes, or a TarInfo."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.addfile(info)
    return stream.getvalue()


@pytest.fixture(scope="module")
def archive(script):
    return tar_of(
        {
            "cifar_teachers/resnet8_vanilla/ckpt_epoch_240.pth": pickled(script, "resnet8"),
            "cifar_teachers/ResNet14_vanilla/ckpt_epoch_240.pth": pickled(script, "resnet14"),
            "cifar_teachers/vgg13_vanilla/other.pth": b"not asked for",
        }
    )


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` with ranges, and breaks off after `limits` bytes, one limit per request."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.limits, self.asked, self.ranges = content, '"one"', [], [], True
        threading.Thread(target=partial(self.serve_forever, 0.01), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/cifar_teachers.tar"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, content = self.server, self.server.content
        server.asked.append(self.headers.get("Range"))
        if "missing" in self.path:
            self.send_error(404)
            return
        start, match = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if match and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(match[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", server.etag)
        self.end_headers()
        limit = server.limits.pop(0) if server.limits else len(content)
        self.wfile.write(content[start : start + limit])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    servers = []

    def start(content):
        servers.append(Server(content))
        return servers[-1]

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


# ---------------------------------------------------------------------- download


BYTES = bytes(range(256)) * 2000


def test_goes_on_where_the_connection_broke_off(script, server, tmp_path):
    site = server(BYTES)
    site.limits = [100_000, 50_000]
    script.download(site.url, tmp_path / "new" / "x.tar", pause=0)
    assert (tmp_path / "new" / "x.tar").read_bytes() == BYTES
    assert site.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.tar"]


def test_goes_on_where_an_earlier_call_was_interrupted(script, server, tmp_path):
    site = server(BYTES)
    (tmp_path / "x.tar.part").write_bytes(BYTES[:1000])
    script.download(site.url, tmp_path / "x.tar", pause=0)
    assert (tmp_path / "x.tar").read_bytes() == BYTES
    assert site.asked == ["bytes=1000-"]


def test_a_part_that_was_whole_needs_only_its_name(script, server, tmp_path):
    site = server(BYTES)
    (tmp_path / "x.tar.part").write_bytes(BYTES)
    script.download(site.url, tmp_path / "x.tar", pause=0)
    assert (tmp_path / "x.tar").read_bytes() == BYTES


def test_starts_again_where_the_file_on_the_server_has_changed(script, server, tmp_path):
    site = server(BYTES)
    site.limits = [100_000, 0, 0]
    with pytest.raises(UserError, match="broke off after 100000 of 512000 bytes"):
        script.download(site.url, tmp_path / "x.tar", attempts=2, pause=0)
    site.content, site.etag = BYTES[::-1], '"two"'
    script.download(site.url, tmp_path / "x.tar", pause=0)
    assert (tmp_path / "x.tar").read_bytes() == BYTES[::-1]


def test_starts_again_where_the_server_knows_no_ranges_or_has_a_shorter_file(script, server, tmp_path):
    site = server(BYTES)
    site.ranges = False
    (tmp_path / "x.tar.part").write_bytes(b"other bytes")
    script.download(site.url, tmp_path / "x.tar", pause=0)
    assert (tmp_path / "x.tar").read_bytes() == BYTES
    site.ranges = True
    (tmp_path / "y.tar.part").write_bytes(BYTES + b"more")
    script.download(site.url, tmp_path / "y.tar", pause=0)
    assert (tmp_path / "y.tar").read_bytes() == BYTES


def test_gives_up_with_a_sentence(script, server, tmp_path):
    site = server(BYTES)
    with pytest.raises(UserError, match="cannot be downloaded: the server answers 404 Not Found"):
        script.download(site.url + "/missing", tmp_path / "x", pause=0)
    assert len(site.asked) == 1
    site.limits = [10, 0, 0, 0]
    with pytest.raises(UserError, match="What has arrived is kept"):
        script.download(site.url, tmp_path / "x", attempts=3, pause=0)
    assert (tmp_path / "x.part").read_bytes() == BYTES[:10]
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------- fetch


def fetch(script, two, source, folder, measure=None):
    return script.fetch(str(source), folder, measure=measure, teachers=two, pause=0)


def test_fetch_installs_every_teacher_with_where_it_came_from(script, two, server, archive, tmp_path, capsys):
    site = server(archive)
    site.limits = [200_000]
    measured = {8: 60.2, 14: 64.9}
    measure = lambda network: measured[8 if len(list(network.parameters())) < 30 else 14]  # noqa: E731
    assert fetch(script, two, site.url, tmp_path, measure) == []
    assert "resnet8: top-1 60.20, published 60.00" in capsys.readouterr().out

    digest = hashlib.sha256(archive).hexdigest()
    assert (tmp_path / "downloads" / "cifar_teachers.tar.sha256").read_text() == f"{digest}  cifar_teachers.tar\n"
    path = tmp_path / "cifar100" / "resnet14.safetensors"
    metadata = read_metadata(path)
    assert metadata["source"] == site.url
    assert metadata["archive_sha256"] == digest
    assert metadata["file"] == "cifar_teachers/ResNet14_vanilla/ckpt_epoch_240.pth"
    assert (metadata["top1"], metadata["published_top1"]) == ("64.90", "65.00")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        original = torch.load(tar.extractfile(metadata["file"]), weights_only=False)["model"]
    installed = load_file(path)
    assert installed.keys() == original.keys()
    assert all(torch.equal(installed[key], original[key]) for key in original)
    assert metadata["key_hash"] == key_hash(original) == "09b9f32bbe1fd323"  # of resnet14 in mdistiller

    requests = len(site.asked)
    assert fetch(script, two, site.url, tmp_path, measure) == []
    assert len(site.asked) == requests  # what is there is not fetched again


def test_an_installed_teacher_can_be_called(script, two, archive, tmp_path):
    (tmp_path / "a.tar").write_bytes(archive)
    assert fetch(script, two, tmp_path / "a.tar", tmp_path) == []
    network = load(tmp_path / "cifar100" / "resnet8.safetensors")
    images = torch.rand(2, 3, 32, 32)
    reference = script.build("resnet8").eval()
    reference.load_state_dict(load_file(tmp_path / "cifar100" / "resnet8.safetensors"))
    assert torch.equal(network(images).logits, reference(images).logits)


def test_without_data_says_that_it_was_not_measured(script, two, archive, tmp_path, capsys):
    (tmp_path / "a.tar").write_bytes(archive)
    assert script.measure_on(str(tmp_path)) is None
    assert fetch(script, two, tmp_path / "a.tar", tmp_path) == []
    assert "top-1 was not measured" in capsys.readouterr().out
    assert "top1" not in read_metadata(tmp_path / "cifar100" / "resnet8.safetensors")


def test_a_teacher_of_another_accuracy_is_not_installed(script, two, archive, tmp_path, capsys):
    (tmp_path / "a.tar").write_bytes(archive)
    assert fetch(script, two, tmp_path / "a.tar", tmp_path, lambda network: 60.29) == ["resnet14"]
    assert (tmp_path / "cifar100" / "resnet8.safetensors").exists()
    assert not (tmp_path / "cifar100" / "resnet14.safetensors").exists()
    assert "resnet14 has top-1 60.29, published is 65.00" in capsys.readouterr().err


FIRST = "cifar_teachers/resnet8_vanilla/ckpt_epoch_240.pth"
LINK = tarfile.TarInfo(FIRST)
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc/passwd"


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (lambda script: {}, "the archive has no file resnet8_vanilla/ckpt_epoch_240.pth"),
        (lambda script: {FIRST: LINK}, "the archive has no file"),
        (lambda script: {"../../" + FIRST: pickled(script, "resnet8")}, "outside the destination"),
        (lambda script: {FIRST: b"<html>404</html>"}, "no weights file"),
        (lambda script: {FIRST: pickled(script, "resnet14")}, "do not fit: unexpected layer1.1.conv1.weight"),
        (lambda script: {FIRST: pickled(script, "resnet8", trap=Trap())}, "safe load refuses"),
    ],
    ids=["absent", "link", "outside", "page", "other network", "code"],
)
def test_one_bad_file_does_not_stop_the_others(script, two, tmp_path, capsys, monkeypatch, member, said):
    monkeypatch.chdir(tmp_path)
    second = {"cifar_teachers/ResNet14_vanilla/ckpt_epoch_240.pth": pickled(script, "resnet14")}
    folder = tmp_path / "deep" / "weights"
    (tmp_path / "a.tar").write_bytes(tar_of(member(script) | second))
    assert fetch(script, two, "a.tar", folder) == ["resnet8"]
    assert said in capsys.readouterr().err
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    installed = "deep/weights/cifar100/resnet14.safetensors"
    assert found == ["a.tar", installed, "deep/weights/downloads/a.tar.sha256"]
    assert not (tmp_path / "sprung").exists()


def test_an_archive_that_changed_is_refused(script, two, archive, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(archive)
    fetch(script, two, path, tmp_path)
    path.write_bytes(archive + b"\0" * 512)
    with pytest.raises(UserError, match=r"a.tar has SHA-256 .*when it was first seen"):
        fetch(script, two, path, tmp_path)


@pytest.mark.parametrize("content", [b"<html>404</html>" * 100, b""])
def test_what_is_no_archive_is_refused(script, two, tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match="no tar archive"):
        fetch(script, two, tmp_path / "a.tar", tmp_path)
    with pytest.raises(UserError, match=r"b\.tar does not exist"):
        fetch(script, two, tmp_path / "b.tar", tmp_path)


def test_the_command_fails_where_a_teacher_fails(script, archive, tmp_path, capsys):
    (tmp_path / "a.tar").write_bytes(archive)
    arguments = ["fetch", "--from", str(tmp_path / "a.tar"), "--folder", str(tmp_path), "--root", str(tmp_path)]
    assert script.main(arguments) == 1
    assert "6 of 6 failed: resnet56, resnet110, resnet32x4, cifar_resnet50, wrn_40_2, vgg13" in capsys.readouterr().err


def test_measures_on_the_real_test_set(script, cifar_root):
    class Constant(torch.nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 100)
            logits[:, 7] = 1
            return Output(logits)

    assert script.measure_on(str(cifar_root))(Constant()) == pytest.approx(1.0)  # 100 of 10,000 images per class


# ---------------------------------------------------------------------- torchvision's


def torchvisions(name, **how):
    """A file as torchvision publishes it, and the end of its name that its bytes ask for."""
    torch.manual_seed(0)
    stream = io.BytesIO()
    torch.save(torchvision.models.get_model(name, weights=None, **how).state_dict(), stream)
    return stream.getvalue(), hashlib.sha256(stream.getvalue()).hexdigest()


@pytest.fixture(scope="module")
def resnet18(script):
    content, digest = torchvisions("resnet18")
    return content, (script.Published("imagenet_resnet18", (f"resnet18-{digest[:8]}.pth", "resnet18-0.pth"), 69.758),)


def test_torchvisions_files_are_those_that_it_names(script):
    """The installed version knows each file under the same URL; its older names are of torchvision 0.8 and before."""
    for published in script.PUBLISHED:
        name = published.name.removeprefix("imagenet_")
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        assert weights.url == f"{script.TORCHVISION}/{published.files[0]}"
        assert weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] == published.top1
        assert all(re.fullmatch(rf"{name}-[0-9a-f]{{8}}\.pth", file) for file in published.files)
        transforms = weights.transforms()
        assert script.IMAGENET["mean"] == transforms.mean
        assert script.IMAGENET["std"] == transforms.std


def test_fetches_torchvisions_weights_by_name(script, resnet18, server, tmp_path, capsys):
    content, networks = resnet18
    site = server(content)
    site.limits = [1_000_000]
    source = site.url.rpartition("/")[0]
    assert script.fetch_published(source, tmp_path, networks=networks, pause=0) == []
    path = tmp_path / "imagenet" / "imagenet_resnet18.safetensors"
    assert f"top-1 69.76 as published; {path}" in capsys.readouterr().out
    metadata = read_metadata(path)
    assert metadata["source"] == f"{source}/{networks[0].files[0]}"
    assert metadata["sha256"] == hashlib.sha256(content).hexdigest()
    original = torch.load(io.BytesIO(content), weights_only=True)
    assert all(torch.equal(value, original[key]) for key, value in load_file(path).items())
    reference = torchvision.models.resnet18(weights=None).eval()
    reference.load_state_dict(original)
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(script.IMAGENET[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(load(path)(images).logits, reference((images - mean) / std))
    requests = len(site.asked)
    assert script.fetch_published(source, tmp_path, networks=networks, pause=0) == []
    assert len(site.asked) == requests  # what is there is not fetched again
    config = harness.configure("teacher=imagenet_resnet18", "data=imagenet", f"student={networks[0].name}")
    assert Path(config["teacher"]["weights"]) == Path("weights", path.relative_to(tmp_path))


def test_a_damaged_file_of_torchvisions_is_not_installed(script, resnet18, server, tmp_path, capsys):
    content, networks = resnet18
    site = server(content[:-1] + b"x")
    assert script.fetch_published(site.url.rpartition("/")[0], tmp_path, networks=networks, pause=0) == [
        "imagenet_resnet18"
    ]
    assert "its name promises" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_torchvisions_files_may_lie_in_a_folder(script, resnet18, tmp_path, capsys):
    content, (known,) = resnet18
    (tmp_path / known.files[0]).write_bytes(content)
    other, digest = torchvisions("resnet18", num_classes=10)
    small = f"resnet18-{digest[:8]}.pth"
    (tmp_path / small).write_bytes(other)
    networks = (
        known,
        script.Published("imagenet_resnet34", ("resnet34-0.pth",), 73.0),
        script.Published("imagenet_resnet18", (small,), 69.0),
    )
    folder = tmp_path / "weights"
    assert script.fetch_published(str(tmp_path), folder, networks=networks) == [n.name for n in networks[1:]]
    said = capsys.readouterr().err
    assert f"{tmp_path} has no resnet34-0.pth" in said
    assert "their classifier has 10 classes" in said
    assert read_metadata(folder / "imagenet" / "imagenet_resnet18.safetensors")["published_top1"] == "69.76"


def test_the_command_takes_names_of_either_data_set(script, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(script, "fetch", lambda source, *_, teachers, **__: asked.append((source, teachers)) or [])
    monkeypatch.setattr(
        script, "fetch_published", lambda source, *_, networks: asked.append((source, networks)) or ["x"]
    )

    def names(*words):
        asked.clear()
        status = script.main(["fetch", *words, "--root", str(tmp_path)])
        return status, [(source, [known.name for known in chosen]) for source, chosen in asked]

    assert names() == (0, [(script.ARCHIVE, [t.name for t in script.TEACHERS])])
    assert names("--data", "imagenet") == (1, [(script.TORCHVISION, [p.name for p in script.PUBLISHED])])
    assert names("imagenet_resnet34", "vgg13") == (
        1,
        [(script.ARCHIVE, ["vgg13"]), (script.TORCHVISION, ["imagenet_resnet34"])],
    )
    assert names("imagenet_resnet50", "--from", "here/") == (1, [("here", ["imagenet_resnet50"])])
    capsys.readouterr()
    for words, said in (
        (("resnet8",), "resnet8 has no public weights: choose of resnet56,"),
        (("vgg13", "--data", "imagenet"), "not all of them are of imagenet"),
        (("vgg13", "imagenet_resnet18", "--from", "x"), "one after the other"),
    ):
        assert names(*words) == (1, [])
        assert said in capsys.readouterr().err


# ---------------------------------------------------------------------- install and list


@pytest.fixture
def run(script, tmp_path):
    """A finished run that trained resnet8 on CIFAR-100."""

    def make(status="finished", **recipe):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        names = {"data": "cifar100", "teacher": "none", "student": "resnet8", "distiller": "none"}
        entry = zoo.by_name("resnet8")
        node = {"_target_": entry.target, **entry.arguments, "num_classes": 100}
        content = {"names": names, "data": script.DATA, "student": node} | recipe
        save_safetensors(script.build("resnet8"), folder / "student.safetensors", {RECIPE: json.dumps(content)})
        scores = {"last": {"epoch": 5, "top1": 59.5}, "best": {"epoch": 4, "top1": 60.5}}
        result = {"status": status, "names": names, "evaluated_on": "test", "commit": "abc", **scores}
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make


def test_installs_a_run_under_its_students_name_or_another(script, run, tmp_path, capsys):
    folder, weights = run(), tmp_path / "weights"
    assert script.main(["install", str(folder), "--folder", str(weights)]) == 0
    assert script.main(["install", str(folder), "--as", "mine", "--folder", str(weights)]) == 0
    for name in ("resnet8", "mine"):
        path = weights / "cifar100" / f"{name}.safetensors"
        source, installed = load_file(folder / "student.safetensors"), load_file(path)
        assert all(torch.equal(installed[key], source[key]) for key in source)
        metadata = read_metadata(path)
        assert (metadata["top1"], metadata["best_top1"], metadata["evaluated_on"]) == ("59.50", "60.50", "test")
        assert metadata["installed_from"] == str(folder)
        load(path)
    capsys.readouterr()
    assert script.main(["list", "--folder", str(weights)]) == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert listed == [["cifar100", name, "59.50", str(folder)] for name in ("mine", "resnet8")]


def test_installs_a_student_that_is_deployed_with_parts_of_its_teacher(script, run, tmp_path, capsys):
    """Under a name of its own, lest `teacher=resnet8` find it; and says how a run names it."""
    entry, method = zoo.by_name("resnet8"), {"_target_": "distill.distillers.simkd.SimKD", "reduction": 2}
    node = {"_target_": entry.target, **entry.arguments, "num_classes": 100}
    names = {"data": "cifar100", "teacher": "resnet8", "student": "resnet8", "distiller": "simkd"}
    numbers = {"ce_weight": 0.0, "simkd_weight": 1.0}
    folder = run(names=names, teacher=node, distiller=method | numbers)
    recipe = json.loads(read_metadata(folder / "student.safetensors")[RECIPE])
    save_safetensors(rebuild(recipe).deployed, folder / "student.safetensors", {RECIPE: json.dumps(recipe)})
    arguments = ["install", str(folder / "student.safetensors"), "--folder", str(tmp_path / "w")]
    assert script.main(arguments) == 0
    path = tmp_path / "w" / "cifar100" / "resnet8-simkd.safetensors"
    assert capsys.readouterr().out == f"{path}: teacher=deployed teacher.label=resnet8-simkd\n"
    load(path)
    assert script.main([*arguments, "--as", "resnet20"]) == 1
    assert "cannot be called resnet20" in capsys.readouterr().err
    assert script.choice("resnet20") == "teacher=resnet20"


def test_installs_a_file_that_says_what_it_holds(script, run, tmp_path):
    path = script.install(run() / "student.safetensors", tmp_path / "w", name=None, force=False)
    assert path == tmp_path / "w" / "cifar100" / "resnet8.safetensors"


def test_replaces_a_teacher_only_by_force(script, run, tmp_path, capsys):
    arguments = ["install", str(run()), "--folder", str(tmp_path / "w")]
    assert script.main(arguments) == 0
    before = load_file(tmp_path / "w" / "cifar100" / "resnet8.safetensors")["fc.weight"]
    run()  # other random weights
    assert script.main(arguments) == 1
    assert "is there already" in capsys.readouterr().err
    assert torch.equal(load_file(tmp_path / "w" / "cifar100" / "resnet8.safetensors")["fc.weight"], before)
    assert script.main([*arguments, "--force"]) == 0
    assert not torch.equal(load_file(tmp_path / "w" / "cifar100" / "resnet8.safetensors")["fc.weight"], before)


def test_refuses_what_cannot_be_a_teacher(script, run, tmp_path):
    def said(source):
        with pytest.raises(UserError) as caught:
            script.install(source, tmp_path / "w", name=None, force=False)
        return str(caught.value)

    assert "its status is running" in said(run(status="running"))
    other = zoo.by_name("resnet14")
    assert "do not fit: missing" in said(run(student={"_target_": other.target, **other.arguments, "num_classes": 100}))
    assert "result.json cannot be read" in said(tmp_path)
    save_safetensors({"weight": torch.ones(1)}, tmp_path / "x.safetensors", {})
    assert "does not say which network it holds" in said(tmp_path / "x.safetensors")
    (tmp_path / "x.pth").write_bytes(b"x")
    assert "neither a run's folder nor a .safetensors file" in said(tmp_path / "x.pth")
    assert not list((tmp_path / "w").rglob("*.safetensors"))


def test_list_says_where_there_is_nothing_and_what_is_damaged(script, tmp_path, capsys):
    assert script.main(["list", "--folder", str(tmp_path)]) == 0
    assert "No teacher in" in capsys.readouterr().out
    (tmp_path / "cifar100").mkdir()
    (tmp_path / "cifar100" / "x.safetensors").write_bytes(b"x")
    assert script.main(["list", "--folder", str(tmp_path)]) == 0
    assert "damaged" in capsys.readouterr().out
