"""Each family against its definition, written down once more from the keys of its state_dict."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.models.mobilenetv1 import MobileNetV1
from distill.models.mobilenetv2 import MobileNetV2
from distill.models.resnet import CifarResNet
from distill.models.resnetv2 import FourStageResNet
from distill.models.shufflenetv1 import ShuffleNetV1
from distill.models.shufflenetv2 import ShuffleNetV2
from distill.models.vgg import CifarVGG
from distill.models.wrn import WideResNet


class Weights:
    """A state_dict whose layers can be called by key."""

    def __init__(self, network: nn.Module) -> None:
        self.tensors = network.state_dict()

    def __contains__(self, key: str) -> bool:
        return f"{key}.weight" in self.tensors

    def conv(self, key, x, **how):
        return F.conv2d(x, self.tensors[f"{key}.weight"], self.tensors.get(f"{key}.bias"), **how)

    def norm(self, key, x):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.tensors[f"{key}.{name}"] for name in names))

    def linear(self, key, x):
        return F.linear(x.mean((2, 3)), self.tensors[f"{key}.weight"], self.tensors[f"{key}.bias"])


def wild(network):
    """Weights that let no mistake pass as an identity, and statistics under which images stay distinct."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = 1.0
    nn.init.normal_(network.classifier.weight)
    network.answer(torch.randn(8, 3, 32, 32))
    return network.eval()


def channels_shuffled(x, groups):
    count = x.shape[1] // groups
    return x[:, [group * count + place for place in range(count) for group in range(groups)]]


def resnet(w, x):
    x = w.norm("bn1", w.conv("conv1", x, padding=1)).relu()
    stages, preacts = [x], []
    for stage, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2)):
        for unit in range(2):
            key, step = f"{stage}.{unit}.", stride if unit == 0 else 1
            y = w.norm(key + "bn1", w.conv(key + "conv1", x, stride=step, padding=1)).relu()
            y = w.norm(key + "bn2", w.conv(key + "conv2", y, padding=1))
            if key + "downsample.0" in w:
                x = w.norm(key + "downsample.1", w.conv(key + "downsample.0", x, stride=step))
            preact = x + y
            x = preact.relu()
        stages.append(x)
        preacts.append(preact)
    return w.linear("fc", x), stages, preacts


def bottlenecks(w, x):
    x = w.norm("bn1", w.conv("conv1", x, padding=1)).relu()
    stages, preacts = [x], []
    for stage, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
        for unit in range(2):
            key, step = f"{stage}.{unit}.", stride if unit == 0 else 1
            y = w.norm(key + "bn1", w.conv(key + "conv1", x)).relu()
            y = w.norm(key + "bn2", w.conv(key + "conv2", y, stride=step, padding=1)).relu()
            y = w.norm(key + "bn3", w.conv(key + "conv3", y))
            if key + "shortcut.0" in w:
                x = w.norm(key + "shortcut.1", w.conv(key + "shortcut.0", x, stride=step))
            preact = x + y
            x = preact.relu()
        stages.append(x)
        preacts.append(preact)
    return w.linear("linear", x), stages, preacts


def wrn(w, x):
    x = w.conv("conv1", x, padding=1)
    stages = [x]
    for stage, stride in (("block1", 1), ("block2", 2), ("block3", 2)):
        for unit in range(2):
            key, step = f"{stage}.layer.{unit}.", stride if unit == 0 else 1
            active = w.norm(key + "bn1", x).relu()
            y = w.norm(key + "bn2", w.conv(key + "conv1", active, stride=step, padding=1)).relu()
            y = w.conv(key + "conv2", y, padding=1)
            x = y + (w.conv(key + "convShortcut", active, stride=step) if key + "convShortcut" in w else x)
        stages.append(x)
    following = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
    preacts = [w.norm(key, x) for key, x in zip(following, stages[1:], strict=True)]
    return w.linear("fc", preacts[-1].relu()), stages, preacts


def vgg(w, x):
    stages, preacts = [], []
    for block in range(5):
        for layer in range(2):
            preact = w.norm(f"block{block}.{3 * layer + 1}", w.conv(f"block{block}.{3 * layer}", x, padding=1))
            x = preact.relu()
        stages.append(x)
        preacts.append(preact)
        if block < 3:
            x = F.max_pool2d(x, 2)
    return w.linear("classifier", x), stages, preacts[1:]


def mobilenetv2(w, x):
    x = w.norm("conv1.1", w.conv("conv1.0", x, stride=2, padding=1)).relu()
    stages = [x]
    for block, (units, stride) in enumerate(((1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))):
        for unit in range(units):
            key, step = f"blocks.{block}.{unit}.conv.", stride if unit == 0 else 1
            y = w.norm(key + "1", w.conv(key + "0", x)).relu()
            y = w.norm(key + "4", w.conv(key + "3", y, stride=step, padding=1, groups=y.shape[1])).relu()
            y = w.norm(key + "7", w.conv(key + "6", y))
            x = x + y if x.shape == y.shape else y
        if block in (1, 2, 4, 6):
            stages.append(x)
    return w.linear("classifier.0", w.norm("conv2.1", w.conv("conv2.0", x)).relu()), stages, stages[1:]


def mobilenetv1(w, x):
    x = w.norm("model.0.1", w.conv("model.0.0", x, stride=2, padding=1)).relu()
    stages, preacts = [x], []
    for unit, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), start=1):
        key = f"model.{unit}."
        x = w.norm(key + "1", w.conv(key + "0", x, stride=stride, padding=1, groups=x.shape[1])).relu()
        preact = w.norm(key + "4", w.conv(key + "3", x))
        x = preact.relu()
        if unit in (3, 5, 11, 13):
            stages.append(x)
            preacts.append(preact)
    return w.linear("fc", x), stages, preacts


def shufflenetv1(w, x):
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    stages, preacts = [x], []
    for stage in ("layer1", "layer2", "layer3"):
        for unit in range(2):
            key, groups = f"{stage}.{unit}.", 1 if x.shape[1] == 24 else 3
            y = w.norm(key + "bn1", w.conv(key + "conv1", x, groups=groups)).relu()
            y = channels_shuffled(y, groups)
            y = w.conv(key + "conv2", y, stride=2 - unit, padding=1, groups=y.shape[1])
            y = w.norm(key + "bn3", w.conv(key + "conv3", w.norm(key + "bn2", y).relu(), groups=3))
            preact = x + y if unit else torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1)
            x = preact.relu()
        stages.append(x)
        preacts.append(preact)
    return w.linear("linear", x), stages, preacts


def shufflenetv2(w, x):
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    stages, preacts = [x], []
    for stage in ("layer1", "layer2", "layer3"):
        key = f"{stage}.0."
        left = w.norm(key + "bn1", w.conv(key + "conv1", x, stride=2, padding=1, groups=x.shape[1]))
        left = w.norm(key + "bn2", w.conv(key + "conv2", left)).relu()
        right = w.norm(key + "bn3", w.conv(key + "conv3", x)).relu()
        right = w.norm(key + "bn4", w.conv(key + "conv4", right, stride=2, padding=1, groups=right.shape[1]))
        right = w.norm(key + "bn5", w.conv(key + "conv5", right)).relu()
        x = channels_shuffled(torch.cat([left, right], 1), 2)
        key, half = f"{stage}.1.", x.shape[1] // 2
        y = w.norm(key + "bn1", w.conv(key + "conv1", x[:, half:])).relu()
        y = w.norm(key + "bn2", w.conv(key + "conv2", y, padding=1, groups=half))
        y = w.norm(key + "bn3", w.conv(key + "conv3", y))
        preacts.append(torch.cat([x[:, :half], y], 1))
        x = channels_shuffled(torch.cat([x[:, :half], y.relu()], 1), 2)
        stages.append(x)
    return w.linear("linear", w.norm("bn2", w.conv("conv2", x)).relu()), stages, preacts


FAMILIES = [
    (resnet, CifarResNet, {"depth": 14, "widths": [6, 8, 10, 12]}),
    (bottlenecks, FourStageResNet, {"blocks": [2, 2, 2, 2], "bottleneck": True, "width": 6}),
    (wrn, WideResNet, {"depth": 16, "widen_factor": 1}),
    (wrn, WideResNet, {"depth": 16, "widen_factor": 2}),
    (vgg, CifarVGG, {"convolutions": [2] * 5, "widths": [6, 8, 10, 12, 14]}),
    (mobilenetv1, MobileNetV1, {}),
    (mobilenetv2, MobileNetV2, {"expansion": 3, "width": 0.25}),
    (shufflenetv1, ShuffleNetV1, {"widths": [48, 96, 192], "units": [2, 2, 2], "groups": 3}),
    (shufflenetv2, ShuffleNetV2, {"widths": [12, 24, 48], "units": [2, 2, 2], "last_width": 32}),
]


@pytest.mark.parametrize(("definition", "kind", "arguments"), FAMILIES)
@torch.no_grad()
def test_equals_its_definition(definition, kind, arguments):
    torch.manual_seed(0)
    network = wild(kind(**arguments, num_classes=7))
    x = torch.randn(3, 3, 32, 32)
    logits, stages, preacts = definition(Weights(network), x)
    answer = network.answer(x)
    torch.testing.assert_close(answer.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answer.stages, tuple(stages), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answer.preacts, tuple(preacts), rtol=1e-4, atol=1e-4)
    assert logits.std(dim=0).min() > 1e-2  # rows differ: the comparison sees the images
