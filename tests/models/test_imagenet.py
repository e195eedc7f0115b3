"""The networks for large images: torchvision's numbers and format, and the maps they show."""

from importlib import import_module

import pytest
import torch
import torchvision
from torch import nn

from distill.checkpoint import load_weights
from distill.distillers.connectors import stage_pairs
from distill.errors import UserError
from distill.models.imagenet_resnet import ImageNetResNet
from distill.models.network import Network
from distill.zoo import CATALOGUE, LARGE, by_name

# computed from the classes of torchvision and of mdistiller at 1000 classes: parameters, tensors of the state_dict,
# stages (channels x height at 224 px: 3.5 times that at 64; MobileNetV1's stem is ours), width of the classifier's
# input, channels of `norms`
PUBLISHED = {
    "imagenet_resnet18": (11_689_512, 122, "64x112 64x56 128x28 256x14 512x7", 512, "64/128/256/512"),
    "imagenet_resnet34": (21_797_672, 218, "64x112 64x56 128x28 256x14 512x7", 512, "64/128/256/512"),
    "imagenet_resnet50": (25_557_032, 320, "64x112 256x56 512x28 1024x14 2048x7", 2048, "256/512/1024/2048"),
    "mobilenetv1": (4_231_976, 164, "32x112 128x56 256x28 512x14 1024x7", 1024, "128/256/512/1024"),
}
NAMES = list(PUBLISHED)
RESNETS = NAMES[:3]
THE_LIGHT = ["imagenet_resnet18", "mobilenetv1"]


def build(name: str, num_classes: int = 1000) -> Network:
    entry = by_name(name)
    module, _, kind = entry.target.rpartition(".")
    return getattr(import_module(module), kind)(**entry.arguments, num_classes=num_classes)


def theirs(name: str) -> nn.Module:
    return torchvision.models.get_model(name.removeprefix("imagenet_"), weights=None)


def lines(module: nn.Module) -> str:
    return "\n".join(f"{key} {tuple(value.shape)}" for key, value in module.state_dict().items())


def test_every_network_of_the_catalogue_is_checked():
    ours = [entry.name for entry in CATALOGUE if entry.size == LARGE and "adapters" not in entry.target]
    assert sorted(NAMES) == sorted(ours)


@pytest.mark.parametrize("name", NAMES)
def test_has_the_published_sizes(name):
    parameters, tensors, stages, width, norms = PUBLISHED[name]
    network = build(name)
    shapes = network.shapes(64)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.published.state_dict()) == tensors
    assert (network.classifier.in_features, network.classifier.out_features) == (width, 1000)
    assert " ".join(f"{channels}x{3.5 * height:.0f}" for channels, height, _ in shapes.stages) == stages
    assert shapes.preacts == shapes.stages[1:]
    assert shapes.final == shapes.stages[-1]
    assert (shapes.pooled, shapes.logits) == (width, 1000)
    assert "/".join(str(norm.num_features) for norm in network.norms) == norms


@pytest.mark.parametrize("name", RESNETS)
def test_has_torchvisions_keys_and_shapes_in_its_order(name):
    with torch.device("meta"):
        assert lines(build(name)) == lines(theirs(name))


def test_mobilenetv1_has_the_keys_of_public_code():
    with torch.device("meta"):
        found = lines(build("mobilenetv1"))
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = ["model.0.0.weight", *(f"model.0.1.{part}" for part in norm)]
    for unit in range(1, 14):
        for place in (0, 3):
            keys += [f"model.{unit}.{place}.weight", *(f"model.{unit}.{place + 1}.{part}" for part in norm)]
    assert [line.split(" ")[0] for line in found.splitlines()] == [*keys, "fc.weight", "fc.bias"]


@pytest.mark.parametrize("name", RESNETS)
@torch.no_grad()
def test_equals_torchvisions(name):
    torch.manual_seed(0)
    reference, network = theirs(name), build(name)
    images = torch.randn(4, 3, 64, 64)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = 1.0
    reference(images)
    network.load_state_dict(reference.state_dict())
    expected = reference.eval()(images)
    answer = network.eval().answer(images)
    assert torch.equal(answer.logits, expected)
    assert expected.std(dim=0).min() > 1e-3  # rows differ: the comparison sees the images
    x = reference.relu(reference.bn1(reference.conv1(images)))
    maps = [x]
    x = reference.maxpool(x)
    for number in range(1, 5):
        x = getattr(reference, f"layer{number}")(x)
        maps.append(x)
    for ours, other in zip(answer.stages, maps, strict=True):
        assert torch.equal(ours, other)
    for preact, stage in zip(answer.preacts, answer.stages[1:], strict=True):
        assert torch.equal(preact.relu(), stage)
        assert preact.min() < 0


@pytest.mark.parametrize("name", THE_LIGHT)
def test_every_parameter_learns_and_every_norm_counts_one_batch(name):
    torch.manual_seed(0)
    network = build(name, num_classes=10).to(memory_format=torch.channels_last)
    answer = network(torch.rand(4, 3, 64, 64).to(memory_format=torch.channels_last))
    answer.logits.square().sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    counts = [value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")]
    assert all(count == 1 for count in counts)
    for x in (*answer.stages, *answer.preacts):
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_norms_of_mobilenetv1_make_its_preacts():
    network, seen = build("mobilenetv1", num_classes=10).eval(), []
    for norm in network.norms:
        norm.register_forward_hook(lambda _, __, out: seen.append(out))
    answer = network(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(one, other) for one, other in zip(seen, answer.preacts, strict=True))


@pytest.mark.parametrize(
    ("teacher", "student"), [("imagenet_resnet34", "imagenet_resnet18"), ("imagenet_resnet50", "mobilenetv1")]
)
def test_stages_of_table_5_meet_one_by_one_at_equal_sizes(teacher, student):
    """MobileNetV1's stages too, which public code shifts by one: its list has no entry for the stem."""
    s, t = (build(name, num_classes=10).shapes(64) for name in (student, teacher))
    assert stage_pairs(s, t) == ((1, 1), (2, 2), (3, 3), (4, 4))
    assert [size for _, size, _ in s.stages] == [size for _, size, _ in t.stages] == [32, 16, 8, 4, 2]


def test_starts_as_torchvisions():
    torch.manual_seed(0)
    reference = theirs("imagenet_resnet18").state_dict()
    for key, value in build("imagenet_resnet18").state_dict().items():
        if value.numel() > 10_000:
            assert value.std().item() == pytest.approx(reference[key].std().item(), rel=0.05)
        elif "conv" not in key and "downsample.0" not in key and "fc" not in key:
            assert torch.equal(value, reference[key])


def test_files_of_old_torchvisions_load(tmp_path):
    """Legacy pickles of parameters, without BatchNorm's counters."""
    torch.manual_seed(0)
    reference = theirs("imagenet_resnet18")
    state = {k: nn.Parameter(v) for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet18-5c106cde.pth", _use_new_zipfile_serialization=False)
    network = build("imagenet_resnet18")
    load_weights(network, tmp_path / "resnet18-5c106cde.pth", what="teacher")
    assert all(torch.equal(value, reference.state_dict()[key]) for key, value in network.state_dict().items())
    with pytest.raises(UserError, match="their classifier has 1000 classes, the data set has 10"):
        load_weights(build("imagenet_resnet18", 10), tmp_path / "resnet18-5c106cde.pth", what="teacher")


def test_refuses_impossible_numbers():
    with pytest.raises(UserError, match="blocks must list 4"):
        ImageNetResNet(blocks=[2, 2], bottleneck=False, width=64, num_classes=10)
    with pytest.raises(UserError, match="num_classes must be a positive whole number, not 0"):
        build("mobilenetv1", num_classes=0)
