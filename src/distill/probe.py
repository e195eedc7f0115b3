"""Linear probes: a linear classifier learns another data set from the features of a frozen network.

What a network has learned beyond its own classes is read off the accuracy (Tian, Krishnan and Isola, ICLR 2020,
section 4.1, and Tables 8 and 9 of the MCLD paper).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.data.loader import Loader, TrainLoader
from distill.data.order import epoch_order
from distill.errors import UserError
from distill.models.network import Network
from distill.numerics import autocast, mix, reseed, stream
from distill.scores import Scores
from distill.types import Batch, Output


@dataclass(frozen=True)
class Samples:
    """What a classifier sees of images.

    Attributes:
        features: What the network's own classifier reads of each image, shape (samples, features), float32.
        labels: Class of each image, shape (samples,), int64.
    """

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Self:
        """The samples at some positions, in that order."""
        index = index.to(self.labels.device)
        return type(self)(self.features[index], self.labels[index])


@dataclass(frozen=True)
class Images:
    """Where a data set's images come from.

    Attributes:
        train: Makes a loader of shuffled and augmented batches, whose seed the probe sets.
        plain: The same images in order, as they are.
        test: Those that the classifier is scored on.
    """

    train: Callable[[], TrainLoader]
    plain: Loader
    test: Loader


@dataclass(frozen=True)
class Recipe:
    """How long and how fast the classifier learns.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Rows of a step.
        lr: Base rate.
        weight_decay: Of weights and biases, as of `torch.optim.SGD`.
        schedule: Factor of the rate at a moment counted in epochs from 0.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: Callable[[float], float]


@torch.no_grad()
def look(network: nn.Module, batches: Iterable[Batch], *, device: torch.device, precision: str) -> Samples:
    """Features of all images of some batches, in the mode that the network is in.

    Args:
        network: Answers with `Output`, whose `pooled` is kept; on `device`.
        batches: Images in [0, 1].
        device: Where to compute and to keep them.
        precision: Of the network, as `choose_precision` returns it.

    Raises:
        UserError: If a feature is infinite or not a number.
    """
    features, labels = [], []
    for batch in batches:
        batch = batch.to(device)
        with autocast(precision, device):
            answer: Output = network(batch.images)
        assert answer.pooled is not None
        features.append(answer.pooled.float())
        labels.append(batch.labels)
    found = Samples(torch.cat(features), torch.cat(labels))
    if not found.features.isfinite().all():
        raise UserError("The network's features are not all finite: are these its weights, and is this its precision?")
    return found


class Classifier:
    """A linear layer that learns by SGD with momentum and weight decay, without a graph.

    Weights and biases are one matrix, which reads a feature of 1 beside the others: a step is two products of matrices
    and four operations on the results, which is what 200,000 steps in seconds take. Its numbers are those of
    `torch.optim.SGD` on the cross-entropy, up to rounding.

    Args:
        features: Columns of what it reads.
        num_classes: Columns of what it answers.
        init_std: Standard deviation of the first weights, normal about 0 beside biases of 0; None for the start of
            `nn.Linear`.
        momentum: Of the steps.
        weight_decay: Of weights and biases.
        seed: Of the first weights.
        device: Where it lives.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        init_std: float | None,
        momentum: float,
        weight_decay: float,
        seed: int,
        device: torch.device,
    ) -> None:
        with stream(seed, "probe"):
            start = nn.Linear(features, num_classes)
            if init_std is not None:
                nn.init.normal_(start.weight, std=init_std)
                nn.init.zeros_(start.bias)
        self.matrix = torch.cat([start.weight.detach().t(), start.bias.detach()[None]]).contiguous().to(device)
        self.velocity = torch.zeros_like(self.matrix)
        self.momentum = momentum
        self.weight_decay = weight_decay

    @property
    def weight(self) -> Tensor:
        """Shape (classes, features)."""
        return self.matrix[:-1].t()

    @property
    def bias(self) -> Tensor:
        """Shape (classes,)."""
        return self.matrix[-1]

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """Logits, shape (samples, classes)."""
        return torch.addmm(self.matrix[-1], features, self.matrix[:-1])

    @torch.no_grad()
    def learn(self, samples: Samples, *, batch_size: int, rates: Sequence[float]) -> Tensor:
        """An epoch: one step per batch, in the order of the samples; a last batch may be smaller.

        Args:
            samples: In the epoch's order.
            batch_size: Rows of a step.
            rates: Of each step.

        Returns:
            The logits from which each sample was learned, shape (samples, classes).
        """
        read = F.pad(samples.features, (0, 1), value=1.0)
        logits = read.new_empty(len(samples), self.matrix.shape[1])
        minus = read.new_full((min(batch_size, len(samples)), 1), -1.0)
        labels = samples.labels[:, None]
        for first, rate in zip(range(0, len(samples), batch_size), rates, strict=True):
            rows = slice(first, first + batch_size)
            x = read[rows]
            answers = torch.mm(x, self.matrix, out=logits[rows])
            error = answers.softmax(dim=1).scatter_add_(1, labels[rows], minus[: len(x)])  # the gradient, times rows
            self.velocity.addmm_(x.t(), error, beta=self.momentum, alpha=1 / len(x))
            self.velocity.add_(self.matrix, alpha=self.weight_decay)
            self.matrix.add_(self.velocity, alpha=-rate)
        return logits


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A protocol of probing.

    Args:
        momentum: Of the classifier's steps.
        init_std: See `Classifier`.
        augment: Whether each epoch sees other crops and flips, and so computes all training features anew; otherwise
            images are looked at once, as they are.
        norms: "frozen" for a network in eval mode; "moving" for one in training mode while training images pass, whose
            BatchNorm normalises by the batch and follows the new images with its running statistics, in a copy: the
            test images are looked at in eval mode after each epoch.
        normalisation: "own" for the network's; "data" for the data set's; or a mean and std for each data set by name.
        lr_of: Rates of networks by name, in place of the recipe's.

    Raises:
        UserError: If a value is out of range, or norms move over images that are looked at once.
    """

    momentum: float
    init_std: float | None
    augment: bool
    norms: Literal["frozen", "moving"]
    normalisation: str | Mapping[str, Any]
    lr_of: Mapping[str, float]

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise UserError(f"probe.momentum={self.momentum} must lie between 0 and 1.")
        if self.init_std is not None and self.init_std < 0:
            raise UserError(f"probe.init_std={self.init_std} must be at least 0, or null for torch's own start.")
        if self.norms == "moving" and not self.augment:
            raise UserError(
                "probe.norms=moving needs probe.augment=true, since features that drift cannot be computed once; for"
                " images as they are add data.flip=false data.padding=0."
            )
        if isinstance(self.normalisation, str) and self.normalisation not in ("own", "data"):
            raise UserError(
                f"probe.normalisation={self.normalisation} is unknown: choose own, data, or"
                " {DATA: {mean: [...], std: [...]}}."
            )

    def adapted(self, network: Network, *, data: str, mean: Sequence[float], std: Sequence[float]) -> Network:
        """A copy in eval mode that normalises images as the protocol says; the given network never changes.

        Args:
            network: Any that shows what its classifier reads.
            data: Name of the data set.
            mean: Of the data set, per channel of [0, 1].
            std: Likewise.

        Raises:
            UserError: If the protocol does not say how images of this data set are normalised.
        """
        network = copy.deepcopy(network).eval()
        if self.normalisation == "own":
            return network
        if isinstance(self.normalisation, Mapping):
            if data not in self.normalisation:
                raise UserError(
                    f"This protocol says how to normalise {' and '.join(self.normalisation)}, not {data}: choose"
                    " probe.normalisation=data, for instance."
                )
            entry = self.normalisation[data]
            if not isinstance(entry, Mapping) or set(entry) != {"mean", "std"}:
                raise UserError(f"probe.normalisation.{data}={entry} must be {{mean: [...], std: [...]}}.")
            mean, std = entry["mean"], entry["std"]
        for module in network.modules():
            # of networks made of others only those that look at images: the rest hand a normalisation on, or refuse it
            if isinstance(module, Network) and type(module).normalise is Network.normalise:
                module.normalise(mean=mean, std=std, input_size=module.input_size)
        return network

    def features(
        self, network: Network, images: Images, *, device: torch.device, precision: str
    ) -> Callable[[int], Iterator[tuple[Samples, Samples]]]:
        """Training and test samples of each epoch, the training samples in its order.

        Args:
            network: As `adapted` returns it; stays as it is.
            images: Of the data set.
            device: Where to compute and keep features.
            precision: Of the network.

        Returns:
            From a seed to its epochs, without end.
        """
        network.to(device)

        def seen(module: Network, batches: Iterable[Batch]) -> Samples:
            return look(module, batches, device=device, precision=precision)

        if self.norms == "frozen":
            test = seen(network, images.test)
            if not self.augment:
                train = seen(network, images.plain)
                return lambda seed: ((train.take(order), test) for order in _orders(len(train), seed))

        def epochs(seed: int) -> Iterator[tuple[Samples, Samples]]:
            moving = copy.deepcopy(network)
            loader = images.train()
            loader.seed = seed
            for epoch in count():
                reseed(mix(seed, "probe", epoch), device)  # for what a network draws in training mode
                moving.train(self.norms == "moving")
                train = seen(moving, loader.batches(epoch, 0))
                moving.eval()
                yield train, test if self.norms == "frozen" else seen(moving, images.test)

        return epochs

    def fit(
        self,
        epochs: Iterable[tuple[Samples, Samples]],
        recipe: Recipe,
        *,
        num_classes: int,
        name: str,
        seed: int,
        split: str,
    ) -> Iterator[dict[str, float]]:
        """Train a classifier, and score it after each epoch.

        Args:
            epochs: Of `features`, for the same seed; at least as many as the recipe has.
            recipe: Of the classifier.
            num_classes: Of the data set.
            name: Of the network, which may have a rate of its own.
            seed: Of the first weights.
            split: What the test samples are, "test" or "holdout": how their columns begin.

        Yields:
            The epoch's row of metrics.csv; accuracies in percent.

        Raises:
            UserError: If the loss is not finite.
        """
        base, classifier, step = self.lr_of.get(name, recipe.lr), None, 0
        for epoch, (train, test) in zip(range(1, recipe.epochs + 1), epochs, strict=False):
            if classifier is None:
                classifier = Classifier(
                    train.features.shape[1],
                    num_classes,
                    init_std=self.init_std,
                    momentum=self.momentum,
                    weight_decay=recipe.weight_decay,
                    seed=seed,
                    device=train.features.device,
                )
                scores = Scores(num_classes).to(train.features.device)
            steps = -(-len(train) // recipe.batch_size)
            rates = [base * recipe.schedule((step + done) / steps) for done in range(steps)]
            step += steps
            learned = classifier.learn(train, batch_size=recipe.batch_size, rates=rates)
            loss = F.cross_entropy(learned, train.labels).item()
            answers = classifier(test.features)
            if not (loss < float("inf") and answers.isfinite().all()):
                raise UserError(f"The classifier's loss on {name} is not finite in epoch {epoch}: lower recipe.lr.")
            scores.reset()
            scores.update(answers, test.labels, None)
            yield {
                "epoch": epoch,
                "step": step,
                "lr": rates[-1],
                "train/loss": loss,
                "train/top1": 100 * (learned.argmax(dim=1) == train.labels).float().mean().item(),
                **{f"{split}/{key}": value for key, value in scores.compute().items()},
            }


def _orders(samples: int, seed: int) -> Iterator[Tensor]:
    return (epoch_order(samples, seed=seed, epoch=epoch) for epoch in count())
