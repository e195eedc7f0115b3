"""The classifier and the features of linear probes, against plain loops."""

import copy
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import harness
from distill.build import check_arguments
from distill.data.order import epoch_order
from distill.errors import UserError
from distill.models.network import Network
from distill.models.resnet import CifarResNet
from distill.numerics import stream
from distill.optim import MultiStep
from distill.probe import Classifier, Images, LinearProbe, Recipe, Samples, look
from distill.run.parts import build_data

CPU = torch.device("cpu")
OURS = {"momentum": 0.9, "init_std": 0.01, "augment": False, "norms": "frozen", "normalisation": "own", "lr_of": {}}
MOVING = {**OURS, "augment": True, "norms": "moving"}
RECIPE = Recipe(
    epochs=4,
    batch_size=16,
    lr=0.5,
    weight_decay=0.01,
    schedule=MultiStep(milestones=[1.5, 3], gamma=0.1, warmup_epochs=0),
)
CLASSES, FEATURES = 4, 6


def samples(number: int = 70, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (number,), generator=generator)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    return Samples(centres[labels] + torch.randn(number, FEATURES, generator=generator), labels)


def fit(probe: LinearProbe, train: Samples, test: Samples, seed: int = 0, recipe: Recipe = RECIPE, name: str = "n"):
    """Rows over samples that are given."""
    epochs = ((train.take(epoch_order(len(train), seed=seed, epoch=epoch)), test) for epoch in range(99))
    return list(probe.fit(epochs, recipe, num_classes=CLASSES, name=name, seed=seed, split="test"))


# ---------------------------------------------------------------------- the classifier


def plain_loop(train: Samples, test: Samples, seed: int, *, rate: float, init_std: float | None):
    """The same as a loop over torch's own layer, loss and optimizer; yields loss and logits of the test samples."""
    with stream(seed, "probe"):
        layer = nn.Linear(FEATURES, CLASSES)
        if init_std is not None:
            nn.init.normal_(layer.weight, std=init_std)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=RECIPE.weight_decay)
    for epoch in range(RECIPE.epochs):
        order, total = epoch_order(len(train), seed=seed, epoch=epoch), 0.0
        starts = range(0, len(train), RECIPE.batch_size)
        for step, first in enumerate(starts):
            moment = epoch + step / len(starts)
            optimizer.param_groups[0]["lr"] = rate * (0.1 if moment >= 1.5 else 1) * (0.1 if moment >= 3 else 1)
            rows = order[first : first + RECIPE.batch_size]
            loss = F.cross_entropy(layer(train.features[rows]), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        with torch.no_grad():
            yield total / len(train), layer(test.features)


@pytest.mark.parametrize(("init_std", "lr_of", "rate"), [(0.01, {}, 0.5), (None, {"n": 0.02}, 0.02)])
def test_training_is_that_of_a_plain_loop(init_std, lr_of, rate):
    train, test = samples(), samples(40, seed=1)
    rows = fit(LinearProbe(**{**OURS, "init_std": init_std, "lr_of": lr_of}), train, test)
    expected = list(plain_loop(train, test, 0, rate=rate, init_std=init_std))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    for row, (loss, logits) in zip(rows, expected, strict=True):
        assert row["train/loss"] == pytest.approx(loss, rel=1e-5)
        assert row["test/nll"] == pytest.approx(F.cross_entropy(logits, test.labels).item(), rel=1e-5)
        assert row["test/top1"] == pytest.approx(100 * (logits.argmax(1) == test.labels).float().mean().item())
    assert rows[-1]["lr"] == pytest.approx(rate / 100)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


@pytest.mark.parametrize("init_std", [0.01, None])
def test_the_first_weights(init_std):
    classifier = Classifier(4096, 50, init_std=init_std, momentum=0.9, weight_decay=0.0, seed=3, device=CPU)
    assert classifier.weight.shape == (50, 4096)
    bound = 1 / 64  # of torch's own start, uniform within
    if init_std is None:
        assert classifier.weight.abs().max() <= bound
        assert 0 < classifier.bias.abs().max() <= bound
    else:
        assert classifier.weight.std() == pytest.approx(init_std, rel=0.01)
        assert not classifier.bias.any()
    answer = classifier(torch.ones(2, 4096))
    assert torch.allclose(answer, classifier.weight.sum(1) + classifier.bias, atol=1e-4)


def test_a_seed_decides_start_and_order():
    train, test = samples(), samples(40, seed=1)
    first, again, other = (fit(LinearProbe(**OURS), train, test, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_loss_that_is_not_finite():
    fast = Recipe(epochs=3, batch_size=16, lr=1e38, weight_decay=0.1, schedule=RECIPE.schedule)
    with pytest.raises(UserError, match=r"^The classifier's loss on n is not finite in epoch 1: lower recipe\.lr\.$"):
        fit(LinearProbe(**OURS), samples(), samples(), recipe=fast)


# ---------------------------------------------------------------------- features


@pytest.fixture(scope="module")
def data():
    # crops and flips of few images: all that is asked of them is who sees which
    return build_data(harness.configure(*harness.SMALL, "data.flip=true", "recipe.batch_size=500"))


@pytest.fixture
def network() -> CifarResNet:
    """With statistics unlike any of the images."""
    with stream(0, "test"):
        made = CifarResNet(depth=8, widths=[4, 4, 8, 8], num_classes=7)
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)
    made.normalise(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], input_size=None)
    return made.eval()


def images(data) -> Images:
    return Images(data.train_dataloader, data.plain_dataloader(), data.val_dataloader())


def epochs(probe: LinearProbe, network: Network, data, number: int, seed: int = 0):
    adapted = probe.adapted(network, data="digits", mean=data.mean, std=data.std)
    made = probe.features(adapted, images(data), device=CPU, precision="32-true")
    return list(islice(made(seed), number))


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_untouched(network: nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())


def test_features_are_what_the_networks_own_classifier_reads(data, network):
    before = state(network)
    (train, test), (later, same) = epochs(LinearProbe(**OURS), network, data, 2)
    assert_untouched(network, before)
    seen = list(data.plain_dataloader())
    with torch.no_grad():
        expected = torch.cat([network(batch.images).pooled for batch in seen])
    labels = torch.cat([batch.labels for batch in seen])
    for epoch, part in enumerate((train, later)):
        order = epoch_order(len(labels), seed=0, epoch=epoch)
        assert torch.equal(part.features, expected[order])
        assert torch.equal(part.labels, labels[order])
    assert torch.equal(test.features, same.features)
    batch = next(iter(data.test_dataloader()))
    with torch.no_grad():
        assert torch.allclose(network.fc(test.features[: len(batch)]), network(batch.images).logits)


def test_augmented_features_are_those_of_each_epochs_views(data, network):
    before = state(network)
    found = epochs(LinearProbe(**{**OURS, "augment": True}), network, data, 2, seed=5)
    assert_untouched(network, before)
    loader = data.train_dataloader()
    loader.seed = 5
    for epoch, (train, _) in enumerate(found):
        with torch.no_grad():
            expected = torch.cat([network(batch.images).pooled for batch in loader.batches(epoch, 0)])
        assert torch.equal(train.features, expected)
    assert torch.equal(found[0][1].features, found[1][1].features)
    assert not torch.equal(found[0][0].features, found[1][0].features)


def test_moving_norms_are_those_of_a_loop_in_training_mode(data, network):
    before = state(network)
    found = epochs(LinearProbe(**MOVING), network, data, 2)
    assert_untouched(network, before)
    own, loader = copy.deepcopy(network), data.train_dataloader()
    for epoch, (train, test) in enumerate(found):
        seen, labels = [], []
        own.train()
        for batch in loader.batches(epoch, 0):
            seen.append(own(batch.images).pooled.detach())
            labels.append(batch.labels)
        own.eval()
        assert torch.allclose(train.features, torch.cat(seen), atol=1e-6)
        assert torch.equal(train.labels, torch.cat(labels))
        with torch.no_grad():
            expected = torch.cat([own(batch.images).pooled for batch in data.test_dataloader()])
        assert torch.allclose(test.features, expected, atol=1e-6)
    assert not torch.allclose(found[0][1].features, found[1][1].features, atol=1e-3)


def test_each_seed_starts_from_the_given_network(data, network):
    probe = LinearProbe(**MOVING)
    made = probe.features(network, images(data), device=CPU, precision="32-true")
    first, other, again = (next(made(seed)) for seed in (0, 1, 0))
    assert torch.equal(first[1].features, again[1].features)
    assert not torch.equal(first[1].features, other[1].features)


def test_features_that_are_not_finite(data, network):
    network.bn1.weight.data[0] = float("nan")
    with pytest.raises(UserError, match=r"^The network's features are not all finite"):
        look(network, data.test_dataloader(), device=CPU, precision="32-true")


# ---------------------------------------------------------------------- how images are normalised

TABLE = {"digits": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}


class Outer(Network):
    """Made of another, which alone looks at images, as a student read by its teacher's classifier."""

    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner = inner

    def normalise(self, **_) -> None:
        raise AssertionError("the inner network looks at images")

    def forward(self, images):
        return self.inner(images)


@pytest.mark.parametrize(
    ("asked", "mean", "std"),
    [
        ("own", [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        ("data", [0.3, 0.4, 0.5], [0.6, 0.7, 0.8]),
        (TABLE, [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]),
    ],
)
def test_normalisation(asked, mean, std, network):
    network.input_size = 8
    probe = LinearProbe(**{**OURS, "normalisation": asked})
    for given in (network, Outer(network)):
        found = probe.adapted(given, data="digits", mean=[0.3, 0.4, 0.5], std=[0.6, 0.7, 0.8])
        looks = found.inner if isinstance(found, Outer) else found
        assert looks.input_size == 8
        pixels = torch.rand(2, 3, 8, 8)
        expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        with torch.no_grad():
            assert torch.allclose(found(pixels).pooled, network.answer(expected).pooled, atol=1e-5)
    assert network.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"norms": "moving"}, "probe.norms=moving needs probe.augment=true, "),
        ({"momentum": 1.0}, "probe.momentum=1.0 must lie between 0 and 1."),
        ({"init_std": -1.0}, "probe.init_std=-1.0 must be at least 0, or null"),
        ({"normalisation": "none"}, "probe.normalisation=none is unknown: choose own, data, or {DATA: "),
    ],
)
def test_a_value_out_of_range(changed, expected):
    with pytest.raises(UserError) as error:
        LinearProbe(**{**OURS, **changed})
    assert str(error.value).startswith(expected)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (TABLE, "This protocol says how to normalise digits, not stl10: choose probe.normalisation=data"),
        ({"stl10": {"mean": [0, 0, 0]}}, "probe.normalisation.stl10={'mean': [0, 0, 0]} must be {mean: "),
    ],
)
def test_a_data_set_without_its_numbers(entry, expected, network):
    with pytest.raises(UserError) as error:
        LinearProbe(**{**OURS, "normalisation": entry}).adapted(network, data="stl10", mean=[0] * 3, std=[1] * 3)
    assert str(error.value).startswith(expected)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("path", sorted((harness.CONF / "protocol").glob("*.yaml")), ids=lambda path: path.stem)
def test_protocols_hold_exactly_the_keys_of_the_class_and_of_a_recipe(path):
    node = harness.yaml(path)
    check_arguments(node["probe"], what="probe")
    usual = harness.yaml(harness.CONF / "recipe/cifar100.yaml")
    assert node.keys() == {"recipe", "probe"}
    assert node["recipe"].keys() == usual.keys()
    assert node["recipe"]["schedule"].keys() == usual["schedule"].keys()
    assert node["recipe"]["epochs"] == node["recipe"]["full_epochs"]
