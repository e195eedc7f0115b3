"""A run's student as files for others, checked against PyTorch, with a model card."""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import Tensor, nn

from distill import record
from distill.build import channels_last, freeze
from distill.checkpoint import read_metadata, save_atomically
from distill.deploy import RECIPE, metadata_of
from distill.errors import UserError
from distill.export.card import card
from distill.export.check import Reference
from distill.export.formats import FORMATS, INPUT, OUTPUT, Classifier, Content, Format, choose
from distill.export.latency import measure
from distill.files import BEST, LAST, RESULT, STUDENT
from distill.frozen import fold
from distill.models.network import Network
from distill.numerics import flush_denormals, stream
from distill.run import config as settings
from distill.run.config import Config, device_of
from distill.run.parts import build_data, build_one
from distill.run.source import chooses_data, student_of, with_data_of

CARD, NUMBERS = "README.md", "card.json"
EPOCH_OF = {STUDENT: "last", LAST: "last", BEST: "best"}
OF_EXPORT = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Origin:
    """The student, and what its run left beside it.

    Attributes:
        path: The file that holds it.
        deployed: In eval mode on the CPU.
        metadata: Of a .safetensors file with these weights.
        recipe: How it is rebuilt, as in that metadata.
        run: The run's configuration; None where the file was moved away from it.
        result: The content of result.json; None where there is none of a finished run.
        epoch: Whose weights these are: best or last; None where that is not known.
    """

    path: Path
    deployed: nn.Module
    metadata: dict[str, str]
    recipe: dict[str, Any]
    run: Config | None
    result: dict[str, Any] | None
    epoch: str | None


@dataclass(frozen=True)
class Samples:
    """What the files are checked on.

    Attributes:
        images: Shape (rows, 3, height, width).
        said: Which these are, in words.
        classes: Names of the classes; [] where they are not known.
    """

    images: Tensor
    said: str
    classes: list[str]


def export(cfg: DictConfig) -> Path:
    """Write what the command line asks for.

    Returns:
        The folder with the files, their card and its numbers.

    Raises:
        UserError: If the source holds no student, a format is unknown or cannot be written, a file answers
            differently from PyTorch, or the folder may not be written. Nothing is left behind then.
    """
    flush_denormals()
    if cfg.source is None:
        raise UserError("Say what to export: source=RUN_FOLDER, or its best.ckpt, last.ckpt or student.safetensors.")
    asked = settings.plain(cfg)
    formats = choose(asked["formats"])
    _check_numbers(asked)
    source, overrides = Path(cfg.source), list(HydraConfig.get().overrides.task)
    config = settings.resolve(with_data_of(source, cfg, overrides))
    device = device_of(config["trainer"])
    folder = source if source.is_dir() else source.parent
    output = Path(config["output"]) if config["output"] else folder / "export"
    with _workplace(output) as place:
        origin = _origin(source, config.get("run"))
        at_hand = origin.run is not None or chooses_data(overrides)
        samples = _samples(config, origin, at_hand=at_hand)
        content, folded = _content(config, origin, samples)
        facts = _described(origin) | {
            "classes": samples.classes,
            "opset": config["opset"],
            "folded": folded,
            "export": {"commit": record.commit(), "versions": record.versions(OF_EXPORT)},
        }
        facts["check"] = _written(formats, content, samples, place, config["check"])
        facts["files"] = {of.file: _of_file(place / of.file) for of in formats.values()}
        teacher, note = _teacher(origin)
        facts["parameters"] |= {} if teacher is None else {"teacher": record.count(teacher)}
        facts["latency"] = _latency(config["latency"], origin, teacher, note, formats, place, device)
        record.write_json(place / NUMBERS, facts)
        record.write_text(place / CARD, card(facts))
        _deliver(place, output)
    print(f"Written to {output}: {', '.join([*facts['files'], CARD, NUMBERS])}.")
    return output


def _check_numbers(asked: Config) -> None:
    whole = {f"{group}.batches": asked[group]["batches"] for group in ("check", "latency")}
    whole |= {"check.rows": asked["check"]["rows"], "latency.times": asked["latency"]["times"], "opset": asked["opset"]}
    for key, value in whole.items():
        numbers = value if isinstance(value, list) and key.endswith("batches") else [value]
        if not numbers or not all(isinstance(number, int) and number > 0 for number in numbers):
            raise UserError(f"{key}={value} must be made of whole numbers of at least 1.")
    for group, key in (("check", "tolerance"), ("latency", "seconds")):
        value = asked[group][key]
        if not isinstance(value, int | float) or value < 0:
            raise UserError(f"{group}.{key}={value} must be a number of at least 0.")


# ---------------------------------------------------------------------- where from


def _origin(source: Path, run: Config | None) -> Origin:
    path = source / STUDENT if source.is_dir() else source
    folder = path.parent
    if not path.exists():
        raise UserError(
            f"{source} is no finished run: it has no {STUDENT}: let it end, with `python src/train.py resume={source}`,"
            f" or export a checkpoint of it with source={source / LAST}."
        )
    deployed = student_of(path, run).requires_grad_(False).eval()
    file = folder / RESULT
    result = json.loads(file.read_text()) if file.is_file() and run is not None else None
    result = result if result and result["status"] == "finished" else None
    epoch = EPOCH_OF.get(path.name) if result else None
    if path.suffix == ".ckpt":
        assert run is not None
        metadata = metadata_of(run, top1=result[epoch]["top1"] if result and epoch else None)
    else:
        metadata = read_metadata(path)
    recipe = json.loads(metadata[RECIPE])
    return Origin(path, deployed, metadata, recipe, run, result, epoch)


def _samples(config: Config, origin: Origin, *, at_hand: bool) -> Samples:
    """Images of the test set where it can be read here, or else random ones."""
    rows, wanted = config["check"]["rows"], origin.recipe["data"]
    why = "the source lies beside no run that says which data it has seen"
    if at_hand:
        own = config["data"]
        if any(own[key] != wanted[key] for key in ("size", "num_classes")):
            raise UserError(
                f"data={config['names']['data']} has {own['num_classes']} classes at {own['size']} px, but the student"
                f" was trained on {wanted['num_classes']} at {wanted['size']} px: name the data set it was trained on."
            )
        try:
            data = build_data({**config, "data": own | {key: False for key in ("download",) if key in own}})
            batches = islice(data.test_dataloader(), -(-rows // data.eval_batch_size))
            images = torch.cat([batch.images for batch in batches])[:rows].contiguous()
            said = f"the first {len(images)} images of the test set of {config['names']['data']}"
            return Samples(images, said, list(data.class_names))
        except (UserError, OSError) as error:
            why = f"the data set could not be read here: {str(error).rstrip('.')}"
    print(f"The files are checked on random images: {why}.")
    with stream(config["seed"], "export"):
        images = torch.rand(rows, 3, wanted["size"], wanted["size"])
    return Samples(images, f"{rows} random images (the data set was not at hand)", [])


def _content(config: Config, origin: Origin, samples: Samples) -> tuple[Content, int]:
    """What is written, and how many normalisations were folded in it."""
    graph, folded = copy.deepcopy(origin.deployed), 0
    if config["folded"]:
        with torch.no_grad():
            folded = fold(cast(Network, graph), samples.images[:2])
    size, classes = origin.recipe["data"]["size"], origin.recipe["data"]["num_classes"]
    names = origin.recipe["names"]
    about = {
        "source": _shown(origin.path),
        "student": names["student"],
        "data": names["data"],
        INPUT: f"float32, (batch, 3, {size}, {size}), RGB in [0, 1]; normalisation is inside",
        OUTPUT: f"float32, (batch, {classes})",
        "commit": record.commit() or "",
    }
    known = {"classes": json.dumps(samples.classes)} if samples.classes else {}
    return Content(
        deployed=origin.deployed,
        graph=graph,
        size=size,
        opset=config["opset"],
        metadata=origin.metadata | known,
        about=about | known,
    ), folded


def _teacher(origin: Origin) -> tuple[Network | None, str | None]:
    """The teacher as it was before it had weights, which tell nothing about its speed; and what to say of it."""
    run = origin.run
    if run is None or not run.get("teacher"):
        return None, None
    try:
        teacher = build_one({**run, "teacher": {**run["teacher"], "weights": None}}, "teacher")
    except UserError as error:
        return None, f"The teacher could not be built again, so its speed is unknown: {str(error).rstrip('.')}."
    return freeze(teacher), "The teacher was built anew for this, with untrained weights, which take the same time."


# ---------------------------------------------------------------------- files


def _written(
    formats: dict[str, Format], content: Content, samples: Samples, place: Path, check: dict[str, Any]
) -> dict[str, Any]:
    """Write each file, and compare what it answers."""
    batches, tolerance = check["batches"], check["tolerance"]
    reference = Reference(Classifier(content.deployed), samples.images, batches=batches)
    found = {}
    for name, of in formats.items():
        of.write(content, place / of.file)
        found[name] = reference.compared(of.load(place / of.file), what=of.file, tolerance=tolerance)
        worst = max(row["difference"] for row in found[name])
        equal = min(row["equal_predictions"] for row in found[name])
        print(f"{of.file:<20} logits differ by at most {worst:.1e}, {equal:.2f} % of predictions are equal")
    return {
        "images": samples.said,
        "rows": len(samples.images),
        "batches": batches,
        "tolerance": tolerance,
        "largest_logit": reference.largest,
        "formats": found,
    }


def _of_file(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """A folder beside the output, for as long as the work takes.

    Raises:
        UserError: If the output holds what no export wrote, or may not be written.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: name a folder.")
    if output.is_dir() and any(output.iterdir()) and not (output / NUMBERS).exists():
        raise UserError(f"output={output} holds files that no export wrote: name a new or an empty folder.")
    place = output.parent / f".{output.name}.{os.getpid()}.tmp"
    try:
        if output.is_dir() and not os.access(output, os.W_OK):
            raise PermissionError(0, "Permission denied")
        place.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"output={output} may not be written ({error.strerror}): name another folder.") from error
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _deliver(place: Path, output: Path) -> None:
    """Put each file where it belongs, whole; what an earlier export wrote in other formats goes."""
    new = sorted(file.name for file in place.iterdir())
    for of in FORMATS.values():
        if of.file not in new:
            (output / of.file).unlink(missing_ok=True)
    for name in new:
        _copied(place / name, output / name)


def _copied(here: Path, there: Path) -> None:
    def write(path: Path) -> None:
        shutil.copyfile(here, path)

    save_atomically(there, write)


# ---------------------------------------------------------------------- what is known


def _described(origin: Origin) -> dict[str, Any]:
    """What the run's own files say."""
    run, result, recipe = origin.run, origin.result, origin.recipe
    student = result["parameters"]["student"] if result else None
    if student is None and "distiller" not in recipe:
        student = record.count(origin.deployed)  # which is the student then
    return {
        "format": 1,
        "names": recipe["names"],
        "source": _shown(origin.path),
        "taught": _taught(run) if run else recipe["names"]["teacher"] != "none",
        "num_classes": recipe["data"]["num_classes"],
        "input": {"size": recipe["data"]["size"], "network_size": recipe["student"].get("input_size")},
        "accuracy": result
        and {
            **{key: result.get(key) for key in ("evaluated_on", "best", "last", "teacher", "test")},
            "exported": origin.epoch,
        },
        "run": result
        and {key: result[key] for key in ("seed", "epochs", "precision", "device", "seconds", "commit", "versions")},
        "method": run and {"name": recipe["names"]["distiller"], "numbers": _numbers(run["distiller"])},
        "training": run and _training(run),
        "parameters": {"student": student, "deployed": record.count(origin.deployed)},
    }


def _taught(run: Config) -> bool:
    return bool(run.get("teacher")) and getattr(get_class(run["distiller"]["_target_"]), "needs_teacher", True)


def _training(run: Config) -> dict[str, Any]:
    aside = ("mean", "std", "batch_size", "eval_batch_size", "seed", *record.PATHS)
    cut = {key: value for key, value in run["trainer"].items() if key.startswith("limit_")}  # shorter epochs
    recipe = _numbers(run["recipe"]) | cut
    optimizer = _numbers(run["optimizer"])
    return {
        "data": {key: value for key, value in _numbers(run["data"]).items() if key not in aside},
        "recipe": recipe,
        "optimizer": {
            "name": run["optimizer"]["_target_"].rpartition(".")[2],
            "numbers": {key: value for key, value in optimizer.items() if key not in recipe},
        },
        "seed": run["seed"],
    }


def _numbers(node: dict[str, Any], place: str = "") -> dict[str, Any]:
    """The values of a node by their places, methods within a method included."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{place}{key}.")
        elif key != "_target_":
            found[f"{place}{key}"] = value
    return found


def _shown(path: Path) -> str:
    """A path without the folders of this machine."""
    path = path.resolve()
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(Path(*path.parts[-3:]))


# ---------------------------------------------------------------------- speed


def _latency(
    settings: dict[str, Any],
    origin: Origin,
    teacher: Network | None,
    note: str | None,
    formats: dict[str, Format],
    place: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Milliseconds of teacher, student and files; networks on the device, files on the CPU."""
    cpu, names = torch.device("cpu"), origin.recipe["names"]
    rows: list[dict[str, Any]] = []
    answers: list[tuple[Callable[[Tensor], Tensor], torch.device]] = []
    for what, network in (
        (f"teacher `{names['teacher']}`", teacher),
        (f"deployed student `{names['student']}`", origin.deployed),
    ):
        if network is not None:
            rows.append({"network": what, "by": "PyTorch, eager", "where": device.type.upper()})
            answers.append((Classifier(channels_last(network).to(device)), device))
    for name, by in (("torch_export", "torch.export"), ("onnx", "onnxruntime")):
        if name in formats:
            of = formats[name]
            rows.append({"network": f"`{of.file}`", "by": by, "where": cpu.type.upper()})
            answers.append((of.load(place / of.file), cpu))
    for row in rows:
        row["batch"] = {}
    size = origin.recipe["data"]["size"]
    for batch in settings["batches"]:
        images = torch.rand(batch, 3, size, size)
        calls = {str(i): _call(answer, images.to(where)) for i, (answer, where) in enumerate(answers)}
        found = measure(calls, times=settings["times"], seconds=settings["seconds"])
        for i, row in enumerate(rows):
            row["batch"][str(batch)] = found[str(i)]
    tf32 = ", with TF32 in convolutions," if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else ""
    return {
        "batches": list(settings["batches"]),
        "precision": f"float32{tf32}",
        "device": record.device_name(device),
        "threads": torch.get_num_threads(),
        "teacher": note,
        "rows": rows,
    }


def _call(answer: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    return lambda: answer(images).cpu()  # a copy waits for the device
