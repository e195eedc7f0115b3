"""The networks for small images: the published format, the maps they show, and what training does to them."""

import hashlib
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.errors import UserError
from distill.models import layers
from distill.models.mobilenetv2 import MobileNetV2
from distill.models.network import Network
from distill.models.resnet import CifarResNet
from distill.models.resnetv2 import FourStageResNet
from distill.models.shufflenetv1 import ShuffleNetV1
from distill.models.shufflenetv2 import ShuffleNetV2
from distill.models.vgg import CifarVGG
from distill.models.wrn import WideResNet
from distill.zoo import CATALOGUE, SMALL, by_name

NARROW = "16x32 16x32 32x16 64x8"
WIDE = "32x32 64x32 128x16 256x8"
WRN2 = "16x32 32x32 64x16 128x8"
WRN4 = "16x32 64x32 128x16 256x8"
VGG = "64x32 128x16 256x8 512x4 512x4"
# computed from the classes of mdistiller and RepDistiller at 100 classes: parameters, tensors of the state_dict, stages
# (channels x height at 32 px), width of the classifier's input, channels of `norms`, and the first 16 hex digits of the
# SHA-256 of the lines "key shape"
PUBLISHED = {
    "resnet8": (83_892, 56, NARROW, 64, "16/32/64", "b0d6b90b7f82eae7"),
    "resnet14": (181_108, 92, NARROW, 64, "16/32/64", "09b9f32bbe1fd323"),
    "resnet20": (278_324, 128, NARROW, 64, "16/32/64", "d62528ebf09500ac"),
    "resnet32": (472_756, 200, NARROW, 64, "16/32/64", "871c1b2d9e39d361"),
    "resnet44": (667_188, 272, NARROW, 64, "16/32/64", "e3f9bc0daaf54a9b"),
    "resnet56": (861_620, 344, NARROW, 64, "16/32/64", "7d3a91d4a8b97b8c"),
    "resnet110": (1_736_564, 668, NARROW, 64, "16/32/64", "471c41f07af2c39c"),
    "resnet8x4": (1_233_540, 62, WIDE, 256, "64/128/256", "a04332a459ae1465"),
    "resnet32x4": (7_433_860, 206, WIDE, 256, "64/128/256", "24fbb1ea1d0f23f9"),
    "wrn_16_1": (180_916, 82, NARROW, 64, "16/32/64", "413afade7e8fc41a"),
    "wrn_16_2": (703_284, 83, WRN2, 128, "32/64/128", "5994bb013d98efa7"),
    "wrn_16_4": (2_772_020, 83, WRN4, 256, "64/128/256", "9846798195ca1b66"),
    "wrn_28_2": (1_479_220, 155, WRN2, 128, "32/64/128", "022552a4ade61211"),
    "wrn_28_4": (5_872_180, 155, WRN4, 256, "64/128/256", "fcb1297735aa41aa"),
    "wrn_40_1": (569_780, 226, NARROW, 64, "16/32/64", "c785d10f458c7b05"),
    "wrn_40_2": (2_255_156, 227, WRN2, 128, "32/64/128", "9a74d15007bab65e"),
    "vgg8": (3_965_028, 37, VGG, 512, "128/256/512/512", "fdc773ff39915584"),
    "vgg11": (9_277_284, 58, VGG, 512, "128/256/512/512", "0b9551ef3480a6ce"),
    "vgg13": (9_462_180, 72, VGG, 512, "128/256/512/512", "bf74037647da8d81"),
    "vgg16": (14_774_436, 93, VGG, 512, "128/256/512/512", "a8f839524d333b8f"),
    "vgg19": (20_086_692, 114, VGG, 512, "128/256/512/512", "d9c51211c54c99e1"),
    "cifar_resnet18": (
        *(11_220_132, 122, "64x32 64x32 128x16 256x8 512x4", 512),
        *("64/128/256/512", "7e9e75d71f67a043"),
    ),
    "cifar_resnet50": (
        *(23_705_252, 320, "64x32 256x32 512x16 1024x8 2048x4", 2048),
        *("256/512/1024/2048", "d22cdf0e7420b1ea"),
    ),
    "mobilenetv2": (812_836, 320, "16x16 12x16 16x8 48x4 160x2", 1280, "12/16/48/160", "68a2c5f51e5cea07"),
    "shufflenetv1": (949_258, 296, "24x32 240x16 480x8 960x4", 960, "", "a2ef493a832e640c"),
    "shufflenetv2": (1_355_528, 338, "24x32 116x16 232x8 464x4", 1024, "", "577996dd44e66b38"),
}
NAMES = [entry.name for entry in CATALOGUE if entry.size == SMALL]
ONE_PER_FAMILY = ["resnet8x4", "wrn_16_2", "vgg8", "cifar_resnet18", "mobilenetv2", "shufflenetv1", "shufflenetv2"]


def build(name: str, num_classes: int = 100) -> Network:
    entry = by_name(name)
    module, _, kind = entry.target.rpartition(".")
    return getattr(import_module(module), kind)(**entry.arguments, num_classes=num_classes)


def fingerprint(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.fixture(scope="module", params=NAMES)
def trained(request):
    """A network after one backward of its logits, and what it answered: tests only look at it."""
    torch.manual_seed(0)
    network = build(request.param)
    before = fingerprint(network)
    answer = network(torch.rand(2, 3, 32, 32))
    answer.logits.square().sum().backward()
    return request.param, network, before, answer


@pytest.fixture(params=ONE_PER_FAMILY)
def small(request) -> Network:
    """One network of each family."""
    torch.manual_seed(0)
    return build(request.param)


def test_every_network_of_the_catalogue_is_checked():
    assert sorted(PUBLISHED) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_has_the_published_format(name):
    parameters, tensors, _, width, _, digest = PUBLISHED[name]
    with torch.device("meta"):
        network = build(name)
    state = network.published.state_dict()
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(state) == tensors
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == digest
    assert (network.classifier.in_features, network.classifier.out_features) == (width, 100)


def test_shows_the_published_maps(trained):
    name, network, _, answer = trained
    _, _, stages, width, norms, _ = PUBLISHED[name]
    assert " ".join(f"{x.shape[1]}x{x.shape[2]}" for x in answer.stages) == stages
    assert [x.shape for x in answer.preacts] == [x.shape for x in answer.stages[1:]]
    assert answer.pooled.shape == (2, width)
    assert answer.logits.shape == (2, 100)
    assert "/".join(str(norm.num_features) for norm in network.norms) == norms
    torch.testing.assert_close(answer.final.mean((2, 3)), answer.pooled)
    torch.testing.assert_close(network.classifier(answer.pooled), answer.logits)


def test_preacts_are_the_stages_before_the_last_relu(trained):
    name, _, _, answer = trained
    maps = answer.stages[1:]
    if name.startswith("wrn"):  # raw sums: their normalisations are the preacts, the last of them is pooled
        assert torch.equal(answer.preacts[-1].relu(), answer.final)
        assert all(x.min() < 0 for x in maps)
    elif name == "mobilenetv2":  # linear bottlenecks
        assert all(a is b for a, b in zip(answer.preacts, maps, strict=True))
        assert all(x.min() < 0 for x in maps)
    else:
        for preact, x in zip(answer.preacts, maps, strict=True):
            rectified = F.channel_shuffle(preact.relu(), 2) if name == "shufflenetv2" else preact.relu()
            assert torch.equal(rectified, x)
            assert preact.min() < 0


def test_norms_make_the_preacts(small):
    seen = {}
    for number, norm in enumerate(small.norms):
        norm.register_forward_hook(lambda _, __, out, number=number: seen.update({number: out}))
    answer = small.eval()(torch.rand(2, 3, 32, 32))
    exact = isinstance(small, WideResNet | CifarVGG)  # elsewhere a shortcut is added to what the norm answers
    for number in seen:
        assert seen[number].shape == answer.preacts[number].shape
        if exact:
            assert torch.equal(seen[number], answer.preacts[number])
    assert len(seen) == len(small.norms)


def test_every_parameter_learns_and_every_norm_counts_one_batch(trained):
    _, network, before, _ = trained
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    counts = [key for key in before if key.endswith("num_batches_tracked")]
    assert counts
    assert all(network.state_dict()[key] - before[key] == 1 for key in counts)


def test_shapes_leaves_no_trace(small):
    next(small.children()).eval()  # a mixture of modes
    before, modes = fingerprint(small), [module.training for module in small.modules()]
    shapes = small.shapes(32)
    assert [module.training for module in small.modules()] == modes
    assert {True, False} == set(modes)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    answer = small(torch.rand(2, 3, 32, 32))
    assert shapes.stages == tuple(tuple(x.shape[1:]) for x in answer.stages)
    assert shapes.preacts == tuple(tuple(x.shape[1:]) for x in answer.preacts)
    assert shapes.final == tuple(answer.final.shape[1:])
    assert (shapes.pooled, shapes.logits) == (answer.pooled.shape[1], 100)


def test_works_in_mixed_precision_channels_last(small):
    small.to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = small(images)
    assert answer.logits.dtype == torch.float32
    assert answer.final.dtype == torch.bfloat16
    for x in (*answer.stages, *answer.preacts, answer.final):
        assert x.is_contiguous(memory_format=torch.channels_last)
    answer.logits.sum().backward()


def test_works_at_64_px(small):
    shapes = small.shapes(64)
    at32 = small.shapes(32)
    assert (shapes.pooled, shapes.logits) == (at32.pooled, at32.logits)
    doubled = [(c, 2 * h, 2 * w) for c, h, w in at32.stages]
    if isinstance(small, CifarVGG):  # pooled once more before its last block, at this size alone
        doubled[-1] = (512, 4, 4)
        assert small.shapes(96).stages[-1] == (512, 12, 12)
    assert list(shapes.stages) == doubled


def test_normalises_and_resizes_its_own_input():
    network = build("resnet8").eval()
    images = torch.rand(2, 3, 32, 32)
    plain = network(images).logits
    network.normalise(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], input_size=None)
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    torch.testing.assert_close(network(images * std + mean).logits, plain, rtol=1e-4, atol=1e-4)
    network.normalise(mean=[0.0] * 3, std=[1.0] * 3, input_size=16)
    assert network(images).stages[0].shape[-1] == 16
    smaller = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(network(images).logits, network(smaller).logits)
    assert not any(key in network.state_dict() for key in ("mean", "std"))


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shuffle_transposes_channels_and_keeps_the_memory_format(groups, memory_format):
    x = torch.randn(2, 12, 5, 7).to(memory_format=memory_format)
    y = layers.shuffle(x, groups)
    for old in range(12):
        group, place = divmod(old, 12 // groups)
        assert torch.equal(y[:, place * groups + group], x[:, old])
    assert y.is_contiguous(memory_format=memory_format)


def test_starts_as_published():
    torch.manual_seed(0)
    for name in ("resnet8x4", "wrn_16_4", "vgg13", "mobilenetv2", "cifar_resnet18"):
        for module in build(name).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
                deviation = (2 / (module.out_channels * module.kernel_size[0] * module.kernel_size[1])) ** 0.5
                assert module.weight.std().item() == pytest.approx(deviation, rel=0.05)
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                assert not module.bias.any()
    assert not build("wrn_16_1").classifier.bias.any()
    for name in ("vgg8", "mobilenetv2"):
        head = build(name).classifier
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not head.bias.any()


MISTAKES = [
    (CifarResNet, {"depth": 21, "widths": [16, 16, 32, 64]}, "6n \\+ 2"),
    (CifarResNet, {"depth": 2, "widths": [16, 16, 32, 64]}, "6n \\+ 2"),
    (CifarResNet, {"depth": 20, "widths": [16, 32, 64]}, "widths must list 4"),
    (CifarResNet, {"depth": 20, "widths": [16, 0, 32, 64]}, "widths must list positive"),
    (FourStageResNet, {"blocks": [2, 2, 2], "bottleneck": False, "width": 64}, "blocks must list 4"),
    (WideResNet, {"depth": 18, "widen_factor": 2}, "6n \\+ 4"),
    (WideResNet, {"depth": 16, "widen_factor": 0.5}, "widen_factor must be a positive whole number"),
    (CifarVGG, {"convolutions": [1, 1, 1, 1], "widths": [8] * 5}, "convolutions must list 5"),
    (MobileNetV2, {"expansion": 6, "width": 0.01}, "at least 1/16"),
    (ShuffleNetV1, {"widths": [240, 480, 961], "units": [4, 8, 4], "groups": 3}, "multiples of 4 x groups = 12"),
    (ShuffleNetV2, {"widths": [116, 232, 463], "units": [4, 8, 4], "last_width": 1024}, "must be even"),
]


@pytest.mark.parametrize(("kind", "arguments", "sentence"), MISTAKES)
def test_refuses_impossible_numbers(kind, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        kind(**arguments, num_classes=100)


def test_refuses_no_classes():
    with pytest.raises(UserError, match="num_classes must be a positive whole number, not 0"):
        build("resnet8", num_classes=0)
