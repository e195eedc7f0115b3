"""How each format is written, and how it is loaded by somebody who has the file alone."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from distill.checkpoint import save_safetensors
from distill.deploy import load, weights_of
from distill.errors import UserError
from distill.files import STUDENT
from distill.mistake import nearest_first
from distill.quiet import quiet

INPUT, OUTPUT = "images", "logits"
ABOUT = "about.json"  # the file within student.pt2 that says what it is

Answer = Callable[[Tensor], Tensor]


class Classifier(nn.Module):
    """Images in [0, 1], shape (batch, 3, height, width), to logits, shape (batch, classes): the graph that is exported.

    Args:
        network: Answers with `distill.types.Output`; normalises and resizes by itself.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Only the logits."""
        # the layout in which convolutions are fastest; what follows them keeps it
        logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last)).logits
        return logits


@dataclass(frozen=True)
class Content:
    """What is written.

    Attributes:
        deployed: The student as its run deployed it, in eval mode on the CPU.
        graph: What is captured: `deployed`, or a copy in a faster form.
        size: Height and width of the images, in px.
        opset: Of the ONNX operators.
        metadata: Of student.safetensors: how to rebuild `deployed`.
        about: What whoever opens the other files wants to know, as plain texts.
    """

    deployed: nn.Module
    graph: nn.Module
    size: int
    opset: int
    metadata: dict[str, str]
    about: dict[str, str]

    @cached_property
    def program(self) -> ExportedProgram:
        """The graph, captured for every batch size.

        Raises:
            UserError: If torch.export cannot capture it.
        """
        example = torch.zeros(2, 3, self.size, self.size)  # of one image it would take the batch size for a constant
        try:
            with torch.no_grad(), _quiet(), _without_idle_regions():
                graph = Classifier(_reachable(copy.deepcopy(self.graph)))
                return torch.export.export(graph, (example,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}})
        except Exception as error:  # whatever a foreign network's code may trip over
            raise UserError(
                f"torch.export cannot capture this network ({_first_line(error)}): choose formats=[safetensors]."
            ) from error


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        file: Its name.
        needs: Packages that do not come with this project.
        write: Writes the content to a path.
        load: What answers images with logits, from the file alone.
    """

    file: str
    needs: tuple[str, ...]
    write: Callable[[Content, Path], None]
    load: Callable[[Path], Answer]


def _write_safetensors(content: Content, path: Path) -> None:
    save_safetensors(weights_of(content.deployed), path, content.metadata)


def _load_safetensors(path: Path) -> Answer:
    return Classifier(load(path))


def _write_program(content: Content, path: Path) -> None:
    with _quiet():
        torch.export.save(content.program, path, extra_files={ABOUT: json.dumps(content.about, indent=2)})


def _load_program(path: Path) -> Answer:
    with _quiet():
        module: Answer = torch.export.load(path).module()
    return module


def _write_onnx(content: Content, path: Path) -> None:
    try:
        with _quiet():
            written = torch.onnx.export(
                content.program,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=content.opset,
                dynamic_shapes={INPUT: {0: "batch"}},
                dynamo=True,
                verbose=False,
            )
            assert written is not None
            written.model.metadata_props.update(content.about)
            written.save(path)
    except Exception as error:
        raise UserError(
            f"This network cannot be written as ONNX with opset {content.opset} ({_first_line(error)}): choose"
            " formats=[safetensors,torch_export]."
        ) from error


def _load_onnx(path: Path) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return answer


FORMATS = {
    "safetensors": Format(STUDENT, (), _write_safetensors, _load_safetensors),
    "torch_export": Format("student.pt2", (), _write_program, _load_program),
    "onnx": Format("student.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
}


def choose(names: object) -> dict[str, Format]:
    """The formats of these names, in the order of `FORMATS`.

    Args:
        names: A name or a list of them.

    Raises:
        UserError: If one is unknown or none is given, or a package that it needs is not installed.
    """
    asked = [names] if isinstance(names, str) else names
    if not isinstance(asked, list) or not asked:
        raise UserError(f"formats={names} is no list of formats: choose some of {', '.join(FORMATS)}.")
    if unknown := [name for name in asked if name not in FORMATS]:
        raise UserError(f"There is no format {unknown[0]}: choose some of {nearest_first(str(unknown[0]), FORMATS)}.")
    chosen = {name: of for name, of in FORMATS.items() if name in asked}
    for name, of in chosen.items():
        if absent := [package for package in of.needs if find_spec(package) is None]:
            others = ",".join(other for other, its in FORMATS.items() if not its.needs)
            raise UserError(
                f"The format {name} needs {', '.join(absent)}: install with `pip install 'distill[export]'` (in a"
                f" checkout `pip install -e '.[export]'`), or leave it out with formats=[{others}]."
            )
    return chosen


def _reachable(network: nn.Module) -> nn.Module:
    """The network, changed so that attributes lead to all of its parts, by which torch.export finds them.

    The published keys of some networks have a part where its class has a property that names another
    (`Network.classifier`). The part moves aside, and the property is replaced by what it answers.
    """
    for module in list(network.modules()):
        for name, part in list(module._modules.items()):
            named = getattr(module, name)
            if named is not part:
                kind = type(module)
                module.__class__ = type(kind.__name__, (kind,), {name: named})
                module._modules[f"{name}_"] = module._modules.pop(name)
    return network


@contextmanager
def _without_idle_regions() -> Iterator[None]:
    """Leave out of a captured graph the regions that switch autocast off: it is off, and nested ones cannot be read."""
    enter: Callable[[torch.autocast], object] = torch.autocast.__enter__
    leave: Callable[..., Any] = torch.autocast.__exit__

    def entered(region: torch.autocast) -> object:
        return enter(region) if region._enabled else region

    def left(region: torch.autocast, *error: Any) -> Any:
        return leave(region, *error) if region._enabled else None

    with patch.multiple(torch.autocast, __enter__=entered, __exit__=left):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and its converter say to their own developers."""
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text.strip()}".rstrip(" .:")
