"""Torchvision's models as networks."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from distill.errors import UserError
from distill.models.imagenet_resnet import ImageNetResNet
from distill.models.torchvision_models import TorchvisionNetwork
from distill.zoo import by_name

# what each can answer: channels x height of its stages at 64 px, a map whose mean the classifier reads, and a single
# linear classifier
SHOWN = {
    "resnet18": ("64x32 64x16 128x8 256x4 512x2", True, True),
    "shufflenet_v2_x0_5": ("24x32 24x16 48x8 96x4 1024x2", True, True),
    "mobilenet_v3_small": ("16x32 16x16 24x8 48x4 576x2", False, True),  # its head has a layer before the last
    "squeezenet1_1": ("64x31 128x15 256x7 512x3", False, False),  # its classifier is a convolution
}
SLOW = {
    "densenet121": ("64x32 256x16 512x8 1024x4 1024x2", True, True),
    "efficientnet_b0": ("16x32 24x16 40x8 112x4 1280x2", True, True),
    "regnet_x_400mf": ("32x32 32x16 64x8 160x4 400x2", True, True),
    "convnext_tiny": ("96x16 192x8 384x4 768x2", False, True),  # its head normalises after the pooling
    "googlenet": ("64x32 192x16 480x8 832x4 1024x2", True, True),  # without its auxiliary classifiers
    "vgg11": ("64x64 128x32 256x16 512x8 512x4 512x2", False, True),  # its classifier has three layers
    "swin_t": ("", True, True),  # channels last, but for the map that is pooled
    "vit_b_16": ("", False, True),
}
CASES = [*SHOWN, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def build(name: str, **how) -> TorchvisionNetwork:
    torch.manual_seed(0)
    return TorchvisionNetwork(**{"name": name, "pretrained": False, "num_classes": 7, **how})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:The default weight init")
def test_answers_as_torchvision_does_and_trains(name):
    network = build(name).eval()
    shown, final, pooled = (SHOWN | SLOW)[name]
    size = network.preferred()[2] or 64
    images = torch.rand(4, 3, size, size)
    with torch.no_grad():
        answer = network(images)
        torch.testing.assert_close(answer.logits, network.published(images), rtol=1e-4, atol=1e-5)
    assert " ".join(f"{x.shape[1]}x{x.shape[2]}" for x in answer.stages) == shown
    assert (answer.final is not None, answer.pooled is not None, answer.preacts) == (final, pooled, ())
    if pooled:
        torch.testing.assert_close(network.classifier(answer.pooled), answer.logits)
    else:
        with pytest.raises(UserError, match="does not end in one linear layer"):
            _ = network.classifier
    if final:
        torch.testing.assert_close(answer.final.mean((2, 3)), answer.pooled)
    network.train()
    answer = network(images)
    sum(x.square().sum() for x in (answer.logits, *answer.stages)).backward()
    assert all(p.grad is not None for p in network.parameters())
    counts = [value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")]
    assert all(value == 1 for value in counts)  # the probe left none


@torch.no_grad()
def test_shows_what_our_own_resnet_shows():
    network, ours = build("resnet18").eval(), ImageNetResNet(**by_name("imagenet_resnet18").arguments, num_classes=7)
    ours.load_state_dict(network.published.state_dict())
    images = torch.rand(2, 3, 64, 64)
    answer, expected = network(images), ours.eval()(images)
    for one, other in zip(answer.stages, expected.stages, strict=True):
        assert torch.equal(one, other)
    for part in ("logits", "final", "pooled"):
        assert torch.equal(getattr(answer, part), getattr(expected, part))


def test_a_copy_notes_for_itself():
    """As the frozen teacher's: what the copy answers is its own, and the original's is as it was."""
    network = build("shufflenet_v2_x0_5").eval()
    images = torch.rand(2, 3, 64, 64)
    network(images)
    other = copy.deepcopy(network)
    nn.init.zeros_(other.classifier.weight)
    nn.init.zeros_(other.published.conv1[0].weight)
    assert torch.equal(other(images).logits, other.classifier.bias.expand(2, -1))
    assert torch.equal(other(images).stages[0][0], other(images).stages[0][1])
    assert not torch.equal(network(images).stages[0][0], network(images).stages[0][1])


def test_logits_are_float32_in_mixed_precision():
    network = build("resnet18").to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = network(torch.rand(2, 3, 64, 64))
    assert (answer.logits.dtype, answer.pooled.dtype) == (torch.float32, torch.float32)
    assert answer.final.dtype == torch.bfloat16


def test_pretrained_weights_bring_their_normalisation_and_other_classes_a_new_classifier(monkeypatch):
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    reference = torchvision.models.shufflenet_v2_x0_5(weights=None)
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, *_, **__: reference.state_dict())  # no download
    network = build("shufflenet_v2_x0_5", pretrained=True)
    assert network.preferred() == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 224)
    assert network.classifier.out_features == 7
    state = network.published.state_dict()
    same = {key for key, value in reference.state_dict().items() if torch.equal(value, state[key])}
    assert set(state) - same == {"fc.weight", "fc.bias"}
    assert network.eval()(torch.rand(2, 3, 64, 64)).logits.shape == (2, 7)
    whole = build("shufflenet_v2_x0_5", pretrained=True, num_classes=1000)
    assert torch.equal(whole.classifier.weight, reference.fc.weight)


def test_mistakes_are_explained(monkeypatch):
    with pytest.raises(UserError, match=r"no classifier called 'resnet19'; did you mean .*resnet1"):
        build("resnet19")

    def unreachable(*_, **__):
        raise OSError("no network")

    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", unreachable)
    with pytest.raises(UserError, match="squeezenet1_1 cannot be had with pretrained weights: no network"):
        build("squeezenet1_1", pretrained=True)
    reference = torchvision.models.squeezenet1_1(weights=None)
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, *_, **__: reference.state_dict())
    with pytest.raises(UserError, match="its pretrained weights cannot be used for 7 classes"):
        build("squeezenet1_1", pretrained=True)
