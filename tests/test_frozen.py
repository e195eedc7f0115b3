"""The frozen teacher's fastest form answers as the teacher does, and leaves the teacher alone."""

import copy
import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import harness
from distill.build import freeze, give_weights
from distill.data.cifar100 import CIFAR100
from distill.frozen import FrozenNetwork, Trace, difference, fastest, fold, fold_pair, store_cast
from distill.models.adapters import LogitNetwork, TimmNetwork
from distill.models.network import Network
from distill.models.resnet import CifarResNet
from distill.numerics import autocast
from distill.scores import evaluate
from distill.types import Batch, Output
from distill.zoo import CATALOGUE, TRANSFORMERS, Entry, by_name

CPU = torch.device("cpu")
SIZE = 16  # the zoo's, for speed: nothing here depends on it
FOLDED_WITHIN = 1e-4  # of the largest value of each tensor
BF16_WITHIN = 0.05  # likewise: of trained networks, and of shallow ones
BF16_AGAINST_AUTOCAST = 2  # errors in units of what bfloat16 does to the unchanged network


def in_form(network: Network, *, precision: str = "32-true", compiled: bool = False, size: int = SIZE) -> FrozenNetwork:
    return fastest(network, precision=precision, device=CPU, size=size, compiled=compiled)


@torch.no_grad()
def wild(network: Network, size: int) -> Network:
    """A frozen network whose normalisations all do something: near the statistics of its maps, but not at them."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        if norm.weight is not None:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    network.train()(torch.rand(4, 3, size, size))
    for norm in norms:
        if norm.running_var is not None:
            norm.running_mean += 0.2 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    return freeze(network)


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def bits(network: Network) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in [*network.named_parameters(), *network.named_buffers()]}


# ---------------------------------------------------------------------- the whole zoo


CONVOLUTIONAL = [entry for entry in CATALOGUE if entry not in TRANSFORMERS]


@pytest.fixture(scope="module", params=CONVOLUTIONAL, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


@pytest.fixture(scope="module")
def teacher(entry: Entry) -> Network:
    torch.manual_seed(0)
    module, _, kind = entry.target.rpartition(".")
    network = getattr(import_module(module), kind)(**entry.arguments, num_classes=7)
    network.normalise(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), input_size=None)
    return wild(network, SIZE)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def float32(teacher: Network, images: Tensor) -> Output:
    with torch.no_grad():
        answer: Output = teacher(images)
    return answer


def test_folded_answers_are_equal(entry: Entry, teacher: Network, images: Tensor, float32: Output) -> None:
    before = bits(teacher)
    fast = in_form(teacher)
    assert difference(fast(images), float32) <= FOLDED_WITHIN
    # a pre-activation block has one convolution before a normalisation and one before a sum
    folded = (entry.arguments["depth"] - 4) // 2 if entry.name.startswith("wrn") else count(teacher, nn.Conv2d)
    assert count(teacher, nn.BatchNorm2d) - count(fast.inner, nn.BatchNorm2d) == folded
    after = bits(teacher)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in teacher.modules())
    assert teacher.train() is teacher


def test_bfloat16_answers_are_as_near_as_autocast_has_them(teacher: Network, images: Tensor, float32: Output) -> None:
    fast = in_form(teacher, precision="bf16-mixed")
    answer = fast(images)
    assert answer.logits.dtype is torch.float32
    with torch.no_grad(), autocast("bf16-mixed", CPU):
        usual = teacher(images).logits
    # untrained networks magnify rounding, some tenfold: no one number bounds them all
    assert 0 < (answer.logits - float32.logits).norm() <= BF16_AGAINST_AUTOCAST * (usual - float32.logits).norm()
    assert fast.classifier.weight.dtype is torch.float32
    stored = [m for m in fast.inner.modules() if isinstance(m, nn.Conv2d)]
    assert all(x.dtype is torch.bfloat16 for m in stored for x in m.parameters())
    norms = [m for m in fast.inner.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(x.dtype is torch.float32 for m in norms for x in m.parameters())


# ---------------------------------------------------------------------- the copy as a network


@pytest.fixture
def small() -> Network:
    torch.manual_seed(0)
    return wild(CifarResNet(depth=8, widths=[4, 4, 8, 8], num_classes=5), SIZE)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_answers_alike_in_any_context(small: Network, images: Tensor, precision: str) -> None:
    fast = in_form(small, precision=precision)
    plain = fast(images)
    assert not fast(images.clone().requires_grad_()).logits.requires_grad
    for context in ("32-true", "bf16-mixed"):
        with autocast(context, CPU):
            assert difference(fast(images), plain) == 0
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert difference(fast(channels_last), plain) == 0


def test_stays_frozen_also_when_copied(small: Network, images: Tensor) -> None:
    for fast in (in_form(small), copy.deepcopy(in_form(small))):
        before, answer = bits(fast), fast(images)
        assert fast.train() is fast
        assert not any(module.training for module in fast.modules())
        assert not any(parameter.requires_grad for parameter in fast.parameters())
        assert difference(fast(images), answer) == 0
        assert all(torch.equal(before[name], x) for name, x in bits(fast).items())


def test_a_copy_does_not_lead_back_to_the_original(small: Network) -> None:
    fast = in_form(small)
    fast.inner.train(False)
    assert fast.inner.train() is fast.inner
    with torch.no_grad():
        fast.classifier.weight.zero_()
    assert small.classifier.weight.abs().max() > 0


def test_is_asked_as_the_original(small: Network, images: Tensor) -> None:
    fast = in_form(small, precision="bf16-mixed")
    batch = Batch(images, labels=torch.zeros(8, dtype=torch.long), index=torch.arange(8))
    assert difference(fast.ask(batch), small(images)) <= BF16_WITHIN
    assert fast.shapes(SIZE) == small.shapes(SIZE)
    assert torch.equal(fast.classifier.weight, small.classifier.weight)
    for own, original in zip(fast.norms, small.norms, strict=True):
        assert own is not original
        assert all(torch.equal(x, y) for x, y in zip(own.buffers(), original.buffers(), strict=True))
    assert fast.published is fast.inner


def test_normalises_anew(small: Network, images: Tensor) -> None:
    fast = in_form(small)
    for network in (small, fast):
        network.normalise(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), input_size=24)
    assert difference(fast(images), small(images)) <= FOLDED_WITHIN


# ---------------------------------------------------------------------- what is folded, and what is not


class Toy(Network):
    """A convolution, its normalisation, and what a subclass makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)
        self.make()

    def make(self) -> None:
        pass

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """The last map, and others that the network shows."""
        return (self.other(F.relu(self.norm(self.conv(x)))),)

    def answer(self, x: Tensor) -> Output:
        last, *shown = self.maps(x)
        pooled = last.mean(dim=(2, 3))
        return Output(self.classify(pooled), stages=tuple(shown), pooled=pooled)


class LooksAtShape(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        assert y.shape[1] == y.size(1) == 4
        assert y.ndim == y.dim() == 4
        return (self.other(self.norm(y)),)


class Unusual(Toy):
    """Everything a convolution can have."""

    def make(self) -> None:
        self.conv = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=2, dilation=2, padding_mode="reflect"),
            nn.BatchNorm2d(6, affine=False, eps=0.1),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, padding="same", groups=6, bias=False),
            nn.BatchNorm2d(6, eps=0.01),
            nn.Conv2d(6, 4, (1, 3), groups=2),
        )


class ReadTwice(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        return (self.norm(y) + y,)


class ReadThroughAView(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        halves = y.chunk(2, dim=1)
        return (self.norm(y) + halves[0].mean(),)


class Shown(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        return self.norm(y), y


class WrittenTo(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.norm(self.conv(x).add_(1)),)


class ConvTwice(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.norm(self.conv(x)) + self.conv(x.flip(3)),)


class NormTwice(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(self.conv(x))
        return (y + self.norm(self.other(y)),)


class Tied(Toy):
    """The second convolution shares the weight of the first."""

    def make(self) -> None:
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.again.weight = self.conv.weight
        self.other = nn.Conv2d(3, 4, 1)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.other(self.again(self.norm(self.conv(x)))),)


class TiedNorms(Toy):
    """Two normalisations share their scales, one of them of a map that is no convolution's."""

    def make(self) -> None:
        self.second = nn.BatchNorm2d(4)
        self.second.weight = self.norm.weight

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.second(F.relu(self.norm(self.conv(x)))),)


class WeightRead(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.norm(self.conv(x)) * self.conv.weight.mean(),)


class StatisticsRead(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.norm(self.conv(x)) + self.norm.running_mean.view(-1, 1, 1),)


class NoStatistics(Toy):
    def make(self) -> None:
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


class Rectifies(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Subclassed(Toy):
    def make(self) -> None:
        self.norm = Rectifies(4)


class Hooked(Toy):
    def make(self) -> None:
        self.norm.register_forward_hook(lambda module, inputs, output: output + 1)


class Parametrised(Toy):
    """Its weights are computed anew at every call."""

    def make(self) -> None:
        nn.utils.parametrizations.weight_norm(self.conv)


class NormInTwoPlaces(Toy):
    def make(self) -> None:
        self.also = self.norm

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.also(self.conv(x)),)


FOLDED = {Toy: 1, LooksAtShape: 1, Unusual: 3}
KEPT = (
    *(ReadTwice, ReadThroughAView, Shown, WrittenTo, ConvTwice, NormTwice, Tied, TiedNorms, WeightRead, StatisticsRead),
    *(NoStatistics, Subclassed, Hooked, Parametrised, NormInTwoPlaces),
)


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, logger="distill"):
        yield


@pytest.mark.parametrize("kind", [*FOLDED, *KEPT])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_folds_what_nothing_else_reads(
    kind: type[Toy], precision: str, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = wild(kind(), SIZE)
    fast = in_form(network, precision=precision)
    within = FOLDED_WITHIN if precision == "32-true" else BF16_WITHIN
    assert difference(fast(images), network(images)) <= within
    assert count(fast.inner, nn.BatchNorm2d) == count(network, nn.BatchNorm2d) - FOLDED.get(kind, 0)
    assert not caplog.records  # it was the trace that decided


def test_folding_is_its_formula() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 6, 3, groups=2).double(), nn.BatchNorm2d(6).double().eval()
    for x, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.1, 2), (norm.weight, -1, 1)):
        nn.init.uniform_(x, low, high)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    expected = norm(convolution(x))
    fold_pair(convolution, norm)
    torch.testing.assert_close(convolution(x), expected, rtol=1e-12, atol=1e-12)


class AsksForTheNorm(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.norm(self.conv(x)) * self.norm.eps,)


class CountsItsBuffers(Toy):
    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.norm(self.conv(x)) * len(list(self.buffers())),)


@pytest.mark.parametrize(
    ("kind", "said"), [(AsksForTheNorm, "fails with AttributeError"), (CountsItsBuffers, "answers differently")]
)
def test_what_no_trace_sees_is_not_folded(
    kind: type[Toy], said: str, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = wild(kind(), SIZE)
    fast = in_form(network)
    assert difference(fast(images), network(images)) <= FOLDED_WITHIN
    assert isinstance(fast.inner.norm, nn.BatchNorm2d)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the teacher is not folded" in caplog.text
    assert said in caplog.text


# ---------------------------------------------------------------------- networks from elsewhere, and their weights


@pytest.mark.parametrize(
    ("name", "size", "folded"),
    [("test_resnet", 32, 15), ("mobilenetv3_small_050", 32, 0), ("test_vit", 160, 0)],
)
def test_timm(name: str, size: int, folded: int, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network = wild(TimmNetwork(name=name, pretrained=False, drop_path=None, input_size=None, num_classes=5), size)
    images = torch.rand(2, 3, size, size)
    fast = in_form(network, size=size)
    assert difference(fast(images), network(images)) <= FOLDED_WITHIN
    assert count(network, nn.BatchNorm2d) - count(fast.inner, nn.BatchNorm2d) == folded
    fast = in_form(network, size=size, precision="bf16-mixed")
    with autocast("bf16-mixed", CPU):
        assert difference(fast(images), network(images)) <= BF16_WITHIN
    assert fast.classifier.weight.dtype is torch.float32
    assert any(x.dtype is torch.bfloat16 for x in fast.parameters())
    assert not caplog.records


def test_a_network_that_names_no_classifier(images: Tensor) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    network = wild(LogitNetwork(module=module), SIZE)
    fast = in_form(network, precision="bf16-mixed")
    assert isinstance(fast.published[1], nn.Identity)
    assert fast.published[3].weight.dtype is torch.bfloat16  # autocast has always cast it there
    assert fast(images).logits.dtype is torch.float32
    assert difference(fast(images), network(images)) <= BF16_WITHIN


class Attends(nn.Module):
    """Its attention hands its weights to one function, and its last layer is read by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.middle = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x).flatten(2).mT
        tokens = self.middle(self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return tokens.mean(dim=1) @ self.last.weight.T


def test_stores_cast_what_is_cast_at_every_call(images: Tensor) -> None:
    torch.manual_seed(0)
    network = freeze(LogitNetwork(module=Attends()))
    with torch.no_grad(), autocast("bf16-mixed", CPU):
        expected = network(images)
        store_cast(network, images)
        assert difference(network(images), expected) == 0
    half = {name for name, x in network.inner.named_parameters() if x.dtype is torch.bfloat16}
    assert half == {"first.weight", "first.bias", "middle.weight", "middle.bias"}


def test_float16(small: Network, images: Tensor) -> None:
    fast = in_form(small, precision="16-mixed")
    assert fast.inner.conv1.weight.dtype is torch.float16
    assert difference(fast(images), small(images)) <= BF16_WITHIN / 4


def test_trace_counts_readers() -> None:
    x, y = torch.ones(2), torch.ones(2)
    with Trace(CPU) as trace:
        z = torch.cat([x, y]) + x.sum()
        assert z.shape == (4,)
    assert [len(trace.uses[id(tensor)]) for tensor in (x, y, z)] == [2, 1, 0]


def test_a_trace_leaves_no_hook(small: Network, images: Tensor) -> None:
    other = copy.deepcopy(small)
    assert fold(other, images) == count(small, nn.BatchNorm2d)
    assert not any(module._forward_hooks for module in other.modules())


# ---------------------------------------------------------------------- compiled


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_compiled_answers_alike_whatever_the_batch(small: Network, precision: str) -> None:
    plain, fast = in_form(small, precision=precision), in_form(small, precision=precision, compiled=True)
    batches = (*torch.rand(8, 3, SIZE, SIZE).split((5, 3)), torch.rand(6, 3, SIZE, SIZE))
    within = FOLDED_WITHIN if precision == "32-true" else BF16_WITHIN
    first = fast(batches[0])
    kept = first.logits.clone()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in batches:
            for context in ("32-true", "bf16-mixed"):
                with autocast(context, CPU):
                    assert difference(fast(batch), plain(batch)) <= within
        with torch.no_grad():
            assert difference(fast(batches[0]), plain(batches[0])) <= within
        assert fast.shapes(SIZE) == small.shapes(SIZE)
    assert torch.equal(first.logits, kept)  # later answers do not overwrite earlier ones


# ---------------------------------------------------------------------- published weights on real images


def published(name: str) -> Network:
    weights = harness.public_weights(name)
    kind = by_name(name)
    network = CifarResNet(**kind.arguments, num_classes=100)
    network.normalise(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), input_size=None)
    give_weights(network, str(weights), what="teacher")
    return freeze(network)


def cifar100(root: Path) -> CIFAR100:
    data = CIFAR100(
        **{"root": str(root), "download": False, "num_classes": 100, "size": 32, "flip": True, "padding": 4},
        **{"mean": (0.0,) * 3, "std": (1.0,) * 3, "holdout": 0, "batch_size": 64, "eval_batch_size": 200, "seed": 0},
    )
    data.setup("test")
    return data


def test_real_predictions_stay(cifar_root: Path) -> None:
    teacher = published("resnet56")
    batches = [batch for batch, _ in zip(cifar100(cifar_root).test_dataloader(), range(5), strict=False)]
    images = torch.cat([batch.images for batch in batches])
    with torch.no_grad():
        expected = teacher(images).logits
    folded = in_form(teacher, size=32)(images).logits
    assert (folded - expected).abs().max() <= FOLDED_WITHIN * expected.abs().max()
    assert torch.equal(folded.argmax(dim=1), expected.argmax(dim=1))
    half = in_form(teacher, size=32, precision="bf16-mixed")(images).logits
    assert (half - expected).abs().max() <= BF16_WITHIN * expected.abs().max()
    assert (half.argmax(dim=1) == expected.argmax(dim=1)).float().mean() >= 0.97


@pytest.mark.slow  # resnet32x4 in float32 takes two minutes on one thread
@pytest.mark.parametrize("name", ["resnet56", "resnet32x4"])
def test_real_accuracy_stays(name: str, cifar_root: Path) -> None:
    teacher, data = published(name), cifar100(cifar_root)
    found = {
        precision: evaluate(network, data.test_dataloader(), num_classes=100, device=CPU, precision=precision)
        for precision, network in (
            ("32-true", teacher),
            ("bf16-mixed", in_form(teacher, size=32, precision="bf16-mixed")),
        )
    }
    top1 = {precision: evaluation.scores["top1"] for precision, evaluation in found.items()}
    agree = (found["32-true"].predictions == found["bf16-mixed"].predictions).float().mean().item()
    assert abs(top1["32-true"] - top1["bf16-mixed"]) < 0.1
    assert agree >= 0.97
