"""Networks from elsewhere: any timm model by name, and any module that answers with logits."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models import layers
from distill.models.network import Network
from distill.types import Output


class TimmNetwork(Network):
    """A model of timm, with as much of `Output` as it can answer exactly.

    One probe at construction, in eval mode and without a trace, finds out what that is. `stages` are timm's feature
    maps, shallowest first, where their sizes decrease strictly (not in plain vision transformers, whose blocks all work
    at one size). `pooled` is what the linear classifier reads, if there is one such layer; `final` the map whose mean
    over positions that is. What does not hold is left empty; `preacts` are always.

    Args:
        name: As in `timm.list_models()`, with a tag of pretrained weights or without.
        pretrained: Whether to fetch the published weights; the classifier is new if their classes are others.
        drop_path: Rate of stochastic depth; None for the model's own.
        num_classes: Columns of the logits.

    Raises:
        UserError: If the name is unknown, the model cannot be built so, or its weights cannot be had.
    """

    def __init__(self, *, name: str, pretrained: bool, drop_path: float | None, num_classes: int) -> None:
        import timm  # takes seconds, which only its users should pay

        super().__init__()
        layers.require_positive(num_classes=num_classes)
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=5)
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them."
            raise UserError(f"timm has no model called {name!r}; {hint}")
        self.name = name
        self.pretrained = pretrained
        try:
            self.model: Any = timm.create_model(
                name, pretrained=pretrained, num_classes=num_classes, drop_path_rate=drop_path
            )
        except TypeError as error:
            raise UserError(f"timm's {name} cannot be built with drop_path={drop_path}: {error}") from error
        except (OSError, RuntimeError, ValueError) as error:
            weights = " with pretrained weights" if pretrained else ""
            raise UserError(f"timm's {name} cannot be built{weights}: {error}") from error
        self._probe()

    @torch.no_grad()
    def _probe(self) -> None:
        """Find out which parts of `Output` the model answers exactly."""
        self.gives_maps = self.gives_pooled = self.gives_final = False
        size = self.model.pretrained_cfg["input_size"]
        images = torch.linspace(-1, 1, size[0] * size[1] * size[2]).view(1, *size)
        self.model.eval()
        features = self._features(images)
        if isinstance(features, Tensor):
            if hasattr(self.model, "forward_intermediates"):
                same, maps = self.model.forward_intermediates(images)
                sizes = [x.shape[-1] for x in maps]
                falling = len(sizes) > 1 and sizes == sorted(set(sizes), reverse=True)
                self.gives_maps = falling and same.shape == features.shape and torch.allclose(same, features)
            head = self.model.get_classifier()
            if isinstance(head, nn.Linear):
                # bit for bit: a normalisation in between would be all but invisible while its statistics are new
                pooled = self.model.forward_head(features, pre_logits=True)
                fits = pooled.ndim == 2 and pooled.shape[1] == head.in_features
                self.gives_pooled = fits and torch.equal(head(pooled), self.model.forward_head(features))
                self.gives_final = (
                    self.gives_pooled and features.ndim == 4 and torch.equal(features.mean((2, 3)), pooled)
                )
        self.model.train()

    def _features(self, x: Tensor) -> Tensor | Sequence[Tensor]:
        features: Tensor | Sequence[Tensor] = self.model.forward_features(x)
        return features

    @property
    def published(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    @property
    def classifier(self) -> nn.Linear:
        if not self.gives_pooled:
            raise UserError(f"timm's {self.name} does not end in one linear layer, which was asked for")
        head: nn.Linear = self.model.get_classifier()
        return head

    def preferred(self) -> tuple[Sequence[float] | None, Sequence[float] | None, int | None]:
        """Mean, standard deviation and input size in px that the model wants; None where it does not mind.

        Pretrained weights want what they were trained with; some architectures have a fixed size.
        """
        config = self.model.pretrained_cfg
        size = config["input_size"][-1] if self.pretrained or config.get("fixed_input_size") else None
        return (config["mean"], config["std"], size) if self.pretrained else (None, None, size)

    def answer(self, x: Tensor) -> Output:
        maps: Sequence[Tensor] = ()
        if self.gives_maps:
            features, maps = self.model.forward_intermediates(x)
        else:
            features = self._features(x)
        if not isinstance(features, Tensor):
            return Output(self.model.forward_head(features).float())
        pooled = None
        with torch.autocast(x.device.type, enabled=False):
            if self.gives_pooled:
                # one pass through the head: normalisations in it count their batches
                pooled = self.model.forward_head(features.float(), pre_logits=True)
                logits = self.classifier(pooled)
            else:
                logits = self.model.forward_head(features.float())
        return Output(logits, stages=tuple(maps), final=features if self.gives_final else None, pooled=pooled)


class LogitNetwork(Network):
    """Any module whose forward answers to images with logits; `Output` holds nothing else.

    Args:
        module: Maps normalised images (batch, 3, height, width) to (batch, classes).
    """

    def __init__(self, *, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    @property
    def published(self) -> nn.Module:
        return self.inner

    def answer(self, x: Tensor) -> Output:
        logits = self.inner(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            given = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"{type(logits)}"
            raise UserError(
                f"{type(self.inner).__name__} must answer with its logits, a tensor of shape (batch, classes), "
                f"but answers with {given}; wrap it in a module that returns them"
            )
        return Output(logits.float())
