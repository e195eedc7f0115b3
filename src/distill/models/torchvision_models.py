"""Torchvision's classifiers by name, with what they can show of themselves."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models import layers
from distill.models.network import Network
from distill.types import Output

SIZE = 224  # px, of the probe
POOLED = "input of the classifier"

Notes = dict[str, Tensor]


def _note_output(notes: Notes, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    notes.pop(name, None)  # of a module that is called twice the last call counts, also in the order
    notes[name] = output


def _note_input(notes: Notes, name: str, module: nn.Module, inputs: Any) -> None:
    notes[name] = inputs[0]


class TorchvisionNetwork(Network):
    """A classifier of torchvision, with as much of `Output` as it can answer exactly.

    One probe at construction, in eval mode and without a trace, finds out what that is, among what the model's parts
    answer, and their parts where they are lists: `stages` are the last maps of each size, the first of which stands for
    the stem; `pooled` is what the last linear layer reads, if the model ends in it; `final` the map whose mean over
    positions that is. What there is not is left empty; `preacts` are always.

    Args:
        name: As in `torchvision.models.list_models(module=torchvision.models)`.
        pretrained: Whether to fetch the published weights (torchvision's DEFAULT); the classifier is new if their
            classes are others.
        num_classes: Columns of the logits.

    Raises:
        UserError: If the name is unknown, the weights cannot be had, or their classes are not `num_classes` and the
            model does not end in a linear layer that could be exchanged.
    """

    def __init__(self, *, name: str, pretrained: bool, num_classes: int) -> None:
        from torchvision import models

        super().__init__()
        layers.require_positive(num_classes=num_classes)
        names = models.list_models(module=models)
        if name not in names:
            close = difflib.get_close_matches(name, names, n=5)
            hint = f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(names)}."
            raise UserError(f"torchvision has no classifier called {name!r}; {hint}")
        self.name = name
        self.weights: Any = models.get_model_weights(name).DEFAULT if pretrained else None
        how = {} if pretrained else {"num_classes": num_classes}
        try:
            model = models.get_model(name, weights=self.weights, **how)
            if getattr(model, "aux_logits", False):  # it would answer with several logits while it is trained
                state = {k: v for k, v in model.state_dict().items() if not k.startswith(("aux", "AuxLogits"))}
                model = models.get_model(name, aux_logits=False, init_weights=False, **how)
                model.load_state_dict(state)
        except (OSError, RuntimeError) as error:
            raise UserError(f"torchvision's {name} cannot be had with pretrained weights: {error}") from error
        self.model: Any = model
        self._notes: Notes = {}
        self._shown: list[str] = []
        self._final: str | None = None
        self._head: str | None = None
        self._probe()
        self._fit(num_classes)
        self._watch()

    # ------------------------------------------------------------------ once

    @torch.no_grad()
    def _probe(self) -> None:
        """Find out which parts of `Output` the model answers exactly."""
        size = getattr(self.model, "image_size", SIZE)
        images = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
        maps: Notes = {}
        linear = [name for name, module in self.model.named_modules() if type(module) is nn.Linear]
        read: Notes = {}
        answered: Notes = {}
        self.model.eval()
        with self._hooked(dict(self._parts()), maps), self._hooked(linear, answered), self._hooked(linear, read, True):
            logits = self.model(images)
        self.model.train()
        # bit for bit: a normalisation in between would be all but invisible while its statistics are new
        heads = [name for name in linear if name in answered and torch.equal(answered[name], logits)]
        self._head = next((name for name in heads if read[name].ndim == 2), None)
        maps = {name: x for name, x in maps.items() if _is_map(x) and not _pools_to(x, logits)}
        if self._head is not None:
            pooled = read[self._head]
            self._final = next((name for name, x in reversed(maps.items()) if _pools_to(x, pooled)), None)
        self._shown = self._last_of_each_size(maps)

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        """The model's parts, and the parts of those that are lists."""
        for name, child in self.model.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                continue  # VGG's changes nothing at 224 px, but enlarges the last map of smaller images
            yield name, child
            if isinstance(child, nn.Sequential | nn.ModuleList):
                yield from ((f"{name}.{inner}", part) for inner, part in child.named_children())

    def _last_of_each_size(self, maps: Notes) -> list[str]:
        """Names of the maps that are stages, in order; none if sizes do not fall."""
        last: dict[int, str] = {}
        for name, x in maps.items():
            height, width = x.shape[-2:]
            if height == width:  # else channels are last
                if last and height > min(last):
                    return []
                last[height] = name
            if name == self._final:
                break
        return list(last.values()) if len(last) > 1 else []

    def _fit(self, num_classes: int) -> None:
        """A new classifier where pretrained weights have other classes."""
        if self.weights is None or len(self.weights.meta["categories"]) == num_classes:
            return
        if self._head is None:
            raise UserError(
                f"torchvision's {self.name} does not end in one linear layer, so that its pretrained weights cannot be"
                f" used for {num_classes} classes"
            )
        self.model.set_submodule(self._head, nn.Linear(self.classifier.in_features, num_classes))

    def _watch(self) -> None:
        """From now on note what is shown."""
        for name in {*self._shown, *([self._final] if self._final else [])}:
            self.model.get_submodule(name).register_forward_hook(partial(_note_output, self._notes, name))
        if self._head is not None:
            self.classifier.register_forward_pre_hook(partial(_note_input, self._notes, POOLED))

    @contextmanager
    def _hooked(self, names: Sequence[str] | dict[str, Any], notes: Notes, of_inputs: bool = False) -> Iterator[None]:
        handles = []
        for name in names:
            module = self.model.get_submodule(name)
            if of_inputs:
                handles.append(module.register_forward_pre_hook(partial(_note_input, notes, name)))
            else:
                handles.append(module.register_forward_hook(partial(_note_output, notes, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ------------------------------------------------------------------ in use

    @property
    def published(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    @property
    def classifier(self) -> nn.Linear:
        if self._head is None:
            raise UserError(f"torchvision's {self.name} does not end in one linear layer, which was asked for")
        head = self.model.get_submodule(self._head)
        assert isinstance(head, nn.Linear)
        return head

    def preferred(self) -> tuple[Sequence[float] | None, Sequence[float] | None, int | None]:
        """Mean, standard deviation and input size in px that the model wants; None where it does not mind.

        Pretrained weights want what they were trained with; some architectures have a fixed size.
        """
        if self.weights is None:
            return None, None, getattr(self.model, "image_size", None)
        wanted = self.weights.transforms()
        return wanted.mean, wanted.std, wanted.crop_size[0]

    def answer(self, x: Tensor) -> Output:
        self._notes.clear()
        logits: Tensor = self.model(x).float()
        pooled = self._notes.get(POOLED)
        if pooled is not None:
            pooled = pooled.float()
            logits = self.classify(pooled)
        stages = tuple(self._notes[name] for name in self._shown)
        final = None if self._final is None else self._notes[self._final]
        self._notes.clear()  # what is kept would keep its graph
        return Output(logits, stages=stages, final=final, pooled=pooled)


def _is_map(x: Any) -> bool:
    """Whether it has positions; what was pooled to one has not."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[-1] > 1


def _pools_to(x: Tensor, pooled: Tensor) -> bool:
    """Whether `pooled` is the mean of a map over positions, to the last bit, as either of two functions computes it."""
    means: tuple[Callable[[Tensor], Tensor], ...] = (layers.pool, lambda y: y.mean((2, 3)))
    return x.shape[:2] == pooled.shape and any(torch.equal(mean(x), pooled) for mean in means)
