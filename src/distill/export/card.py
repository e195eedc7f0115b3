"""The model card: what card.json holds, in words for whoever finds the files."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from distill.export.formats import FORMATS

Facts = Mapping[str, Any]
UNKNOWN = "unknown"


def card(facts: Facts) -> str:
    """The card as Markdown, with front matter as the Hugging Face hub reads it.

    Args:
        facts: The content of card.json, as `distill.run.export` gathers it; every number of the card is in it.
    """
    parts = [_front_matter(facts), _title(facts), _accuracy(facts), _method(facts), _size(facts), _loading(facts)]
    parts += [_check(facts), _limits(facts), _origin(facts)]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------- parts


def _front_matter(facts: Facts) -> str:
    names, scores = facts["names"], facts["accuracy"]
    content: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "tags": ["knowledge-distillation", names["distiller"], names["student"], *facts["check"]["formats"]],
        "datasets": [names["data"]],
        "metrics": ["accuracy"],
    }
    exported = scores and scores["exported"] and scores[scores["exported"]]
    if exported:
        split = scores["evaluated_on"]
        measured = [{"type": "accuracy", "name": f"top-{k}", "value": round(exported[f"top{k}"], 2)} for k in (1, 5)]
        data = {"name": names["data"], "type": names["data"], "split": split}
        result = {"task": {"type": "image-classification"}, "dataset": data, "metrics": measured}
        content["model-index"] = [{"name": _name(facts), "results": [result]}]
    text = yaml.safe_dump(content, sort_keys=False, width=120)
    return f"---\n# license: yours to choose, within those of the data and of the teacher\n{text}---"


def _title(facts: Facts) -> str:
    names, taught = facts["names"], facts["taught"]
    how = "without a teacher"
    if taught:
        how = f"with the teacher `{names['teacher']}` by the method `{names['distiller']}`"
    classes = facts["num_classes"]
    return (
        f"# {_name(facts)}\n\nA `{names['student']}` that tells the {classes} classes of `{names['data']}` apart,"
        f" trained {how}. {_which(facts)}"
    )


def _accuracy(facts: Facts) -> str:
    scores = facts["accuracy"]
    if not scores:
        return "## Accuracy\n\nUnknown: there was no result.json of a finished run beside the source."
    rows = []
    same = scores["best"]["epoch"] == scores["last"]["epoch"]
    for which in ("last",) if same else ("best", "last"):
        said = "best and last" if same else which
        mark = ", **exported**" if scores["exported"] and (same or which == scores["exported"]) else ""
        rows.append([f"student, {said} epoch ({scores[which]['epoch']}){mark}", *_top(scores[which])])
    if scores["teacher"]:
        rows.append([f"teacher `{facts['names']['teacher']}`", *_top(scores["teacher"])])
    for which, found in (scores["test"] or {}).items():
        rows.append([f"student, {which} epoch, on the test set", *_top(found)])
    run = facts["run"]
    notes = [f"In percent, on the {scores['evaluated_on']} set, as the run recorded it in {run['precision']}."]
    if not same:
        notes.append("The best epoch is the one that scored best on this very set, which flatters it.")
    if scores["exported"]:
        agreement = scores[scores["exported"]].get("agreement")
        if agreement is not None:
            notes.append(f"The exported student agrees with its teacher on {agreement:.2f} % of the images.")
    return f"## Accuracy\n\n{_table(['', 'top-1', 'top-5'], rows)}\n\n{' '.join(notes)}"


def _method(facts: Facts) -> str:
    method, run, training = facts["method"], facts["run"], facts["training"]
    if method is None:
        return "## Method and data\n\nThe numbers are unknown: there was no config.yaml of a run beside the source."
    rows = [["method", f"`{method['name']}` {_numbers(method['numbers'])}".strip()]]
    rows.append(["data", f"`{facts['names']['data']}` {_numbers(training['data'])}"])
    rows.append(["recipe", _numbers(training["recipe"])])
    rows.append(["optimizer", f"`{training['optimizer']['name']}` {_numbers(training['optimizer']['numbers'])}"])
    rows.append(["seed", f"{training['seed']}"])
    if run:
        rows.append(["training", f"{run['seconds']:,.0f} s on {run['device']}, in {run['precision']}"])
    return f"## Method and data\n\n{_table(['what', 'numbers'], rows)}"


def _size(facts: Facts) -> str:
    found = facts["parameters"]
    rows = [[who, _count(found[who])] for who in ("student", "deployed", "teacher") if who in found]
    notes = []
    if found["student"] is not None and found["deployed"] > found["student"]:
        notes.append(
            f"What is deployed has {found['deployed'] - found['student']:,} parameters beside the student's: parts that"
            " the method needs to answer. They are in these files, and nothing else is needed."
        )
    files = [[f"`{name}`", f"{of['bytes']:,}"] for name, of in facts["files"].items()]
    parts = ["## Size and speed", _table(["parameters of", "number"], rows), *notes, _table(["file", "bytes"], files)]
    return "\n\n".join([*parts, _latency(facts["latency"])])


def _latency(found: Facts) -> str:
    batches = found["batches"]
    head = ["network", "by", *(f"batch {size}, ms" for size in batches)]
    rows = [
        [row["network"], f"{row['by']}, {row['where']}", *map(_spread, row["batch"].values())] for row in found["rows"]
    ]
    notes = [
        f"Median (and quartiles) per batch, {found['precision']}, on {found['device']}. The networks took turns, after"
        " warming up."
    ]
    calls = [row["batch"][str(size)]["calls"] for row in found["rows"] for size in batches]
    notes.append(f"{_range(calls)} calls of each were timed.")
    if len({row["where"] for row in found["rows"]}) > 1:
        notes.append(f"What ran on the CPU had {found['threads']} threads.")
    if found["teacher"]:
        notes.append(found["teacher"])
    return f"{_table(head, rows)}\n\n{' '.join(notes)}"


def _loading(facts: Facts) -> str:
    size = facts["input"]["size"]
    parts = [
        "## How to load it",
        f"Images are float32 in [0, 1], RGB, of shape (batch, 3, {size}, {size}), in batches of any size. Normalisation"
        f" is inside the network{_resizing(facts)}. The answer is one logit for each of {facts['num_classes']} classes"
        f"{', in the order of `classes` in card.json' if facts['classes'] else ''}.",
        _python(
            "import numpy as np",
            "from PIL import Image",
            "",
            f'photo = Image.open("photo.jpg").convert("RGB").resize(({size}, {size}))',
            'images = np.asarray(photo, dtype="float32").transpose(2, 0, 1)[None] / 255',
        ),
    ]
    for name, say in (("safetensors", _safetensors), ("torch_export", _torch_export), ("onnx", _onnx)):
        if FORMATS[name].file in facts["files"]:
            parts += say(facts)
    return "\n\n".join(parts)


def _safetensors(facts: Facts) -> list[str]:
    file = FORMATS["safetensors"].file
    text = (
        f"`{file}`, with the package `distill` at the commit below: the whole network, to train on or to distil from."
    )
    return [
        text,
        _python(
            "import distill",
            "import torch",
            "",
            f'student = distill.load("{file}")',
            "with torch.no_grad():",
            "    logits = student(torch.from_numpy(images)).logits",
        ),
    ]


def _torch_export(facts: Facts) -> list[str]:
    file = FORMATS["torch_export"].file
    return [
        f"`{file}`, with PyTorch alone ({facts['export']['versions']['torch']} wrote it){_folded(facts)}:",
        _python(
            "import torch",
            "",
            f'student = torch.export.load("{file}").module()',
            "with torch.no_grad():",
            "    logits = student(torch.from_numpy(images))",
        ),
    ]


def _onnx(facts: Facts) -> list[str]:
    file = FORMATS["onnx"].file
    return [
        f"`{file}`, with onnxruntime or another reader of ONNX (opset {facts['opset']}){_folded(facts)}:",
        _python(
            "import onnxruntime",
            "",
            f'student = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])',
            '(logits,) = student.run(["logits"], {"images": images})',
        ),
    ]


def _check(facts: Facts) -> str:
    found = facts["check"]
    rows = []
    for name, compared in found["formats"].items():
        differences = [f"{row['difference']:.1e}" if row["difference"] else "0" for row in compared]
        equal = min(row["equal_predictions"] for row in compared)
        rows.append([f"`{FORMATS[name].file}`", *differences, f"{equal:.2f} %"])
    head = ["file", *(f"batch {size}" for size in found["batches"]), "equal predictions"]
    return (
        "## Checked\n\n"
        "Each file was loaded by itself, in the way shown above, and compared with the PyTorch network on"
        f" {found['images']}, in float32 on a CPU: the largest difference of logits in batches of each size, and how"
        f" many predictions are equal. The largest logit is {found['largest_logit']:.3g}; up to"
        f" {found['tolerance']:g} of it was allowed.\n\n{_table(head, rows)}"
    )


def _limits(facts: Facts) -> str:
    names, size = facts["names"], facts["input"]["size"]
    trained = facts["training"]
    notes = [
        f"It has seen `{names['data']}` alone, and names one of its {facts['num_classes']} classes whatever it is"
        " shown.",
        f"Images of another size must be brought to {size} x {size} first.",
        "How it does on other images (other cameras, noise, other people's photographs) has not been measured, nor"
        " whether it errs more on some groups than on others.",
    ]
    scores = facts["accuracy"]
    exported = scores and scores["exported"] and scores[scores["exported"]]
    if exported and "ece" in exported:
        notes.append(
            f"Its probabilities are off by {exported['ece']:.1f} points on average (expected calibration error, on the"
            f" {scores['evaluated_on']} set)."
        )
    if trained:
        recipe = trained["recipe"]
        if recipe["epochs"] < recipe["full_epochs"]:
            notes.append(f"It was trained for {recipe['epochs']} of the recipe's {recipe['full_epochs']} epochs.")
        notes.append("It comes from one seed; other seeds end elsewhere.")
    return "## Limits\n\n" + "\n".join(f"- {note}" for note in notes)


def _origin(facts: Facts) -> str:
    run, now = facts["run"], facts["export"]
    rows = [["exported", _commit(now["commit"]), _versions(now["versions"])]]
    if run:
        rows.insert(0, ["trained", _commit(run["commit"]), _versions(run["versions"])])
    return (
        f"## Where it comes from\n\n{_table(['', 'commit', 'versions'], rows)}\n\nSource: `{facts['source']}`."
        " All numbers of this page are in card.json."
    )


# ---------------------------------------------------------------------- words


def _name(facts: Facts) -> str:
    names = facts["names"]
    if not facts["taught"]:
        return f"{names['student']} on {names['data']}"
    return f"{names['student']} from {names['teacher']} by {names['distiller']} on {names['data']}"


def _which(facts: Facts) -> str:
    scores = facts["accuracy"]
    if not scores or not scores["exported"]:
        return f"The weights are those of `{facts['source']}`; which epoch that was is {UNKNOWN}."
    which = scores["exported"]
    epoch = f"epoch {scores[which]['epoch']} of {facts['run']['epochs']}"
    return (
        f"The weights are those of the {which} epoch ({epoch}), at {scores[which]['top1']:.2f} % top-1 on the"
        f" {scores['evaluated_on']} set."
    )


def _resizing(facts: Facts) -> str:
    own = facts["input"]["network_size"]
    return f", which also resizes them to {own} px" if own not in (None, facts["input"]["size"]) else ""


def _folded(facts: Facts) -> str:
    count = facts["folded"]
    return f", with {count} BatchNorms folded into convolutions" if count else ""


def _top(scores: Mapping[str, float]) -> list[str]:
    return [f"{scores[key]:.2f}" for key in ("top1", "top5")]


def _numbers(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"({', '.join(map(_plain, value))})"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _spread(found: Mapping[str, Any]) -> str:
    low, high = found["quartiles_ms"]
    return f"{found['median_ms']:.3g} ({low:.3g} to {high:.3g})"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _commit(commit: str | None) -> str:
    return f"`{commit}`" if commit else UNKNOWN


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
