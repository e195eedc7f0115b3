"""Networks from elsewhere: any timm model by name, and any module that answers with logits."""

import contextlib
import difflib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill import zoo
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
        input_size: Height and width of the images it will see, in px. Vision transformers are built for one size, which
            their position embedding depends on: for this one, or their own if None. Models that take any size, as
            convolutional networks do, are the same for all.
        num_classes: Columns of the logits.

    Raises:
        UserError: If the name is unknown, the model cannot be built so, or its weights cannot be had.
    """

    def __init__(
        self, *, name: str, pretrained: bool, drop_path: float | None, input_size: int | None, num_classes: int
    ) -> None:
        import timm  # takes seconds, which only its users should pay

        super().__init__()
        layers.require_positive(num_classes=num_classes)
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=5)
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them."
            raise UserError(zoo.absent(name) or f"timm has no model called {name!r}; {hint}")
        self.name = name
        self.pretrained = pretrained
        how = {"pretrained": pretrained, "num_classes": num_classes, "drop_path_rate": drop_path}
        self.built_for = input_size
        try:
            self.model: Any = self._made_for(input_size, timm.create_model, how)
        except TypeError as error:
            raise UserError(f"timm's {name} cannot be built with drop_path={drop_path}: {error}") from error
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            weights = " with pretrained weights" if pretrained else ""
            at = f" for {input_size} px" if input_size else ""
            raise UserError(f"timm's {name} cannot be built{weights}{at}: {error}") from error
        if self.built_for is not None:
            self._refuse_remainder(self.built_for)
        for key in getattr(self.model, "no_weight_decay", set)():
            with contextlib.suppress(AttributeError):  # of a part that this variant lacks
                cast(Any, self.model.get_parameter(key)).no_decay = True  # read by distill.optim.AdamW
        self._probe()

    def _made_for(self, size: int | None, create: Callable[..., nn.Module], how: dict[str, Any]) -> nn.Module:
        """The model for one size of images, where it is one of those that are built for one."""
        if size is not None:
            try:
                return create(self.name, img_size=size, **how)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
        self.built_for = None
        return create(self.name, **how)

    def _refuse_remainder(self, size: int) -> None:
        """Refuse a size that patches do not cover: the rest of the image would be left out without a word."""
        embedding = getattr(self.model, "patch_embed", None)
        patches = (m for m in embedding.modules() if isinstance(m, nn.Conv2d)) if embedding is not None else iter(())
        first = next(patches, None)
        if first is None or any(first.padding):
            return
        patch, stride = first.kernel_size[0], first.stride[0]
        if size < patch or (size - patch) % stride:
            below = max(patch, size - (size - patch) % stride)
            raise UserError(
                f"timm's {self.name} cuts images into patches of {patch} px, one every {stride} px, which do not cover"
                f" {size} px: set input_size to {below} or {below + stride}, for instance"
            )

    @torch.no_grad()
    def _probe(self) -> None:
        """Find out which parts of `Output` the model answers exactly."""
        self.gives_maps = self.gives_pooled = self.gives_final = False
        channels, *sides = self.model.pretrained_cfg["input_size"]
        size = (channels, *(2 * [self.built_for] if self.built_for else sides))
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
