"""timm's models and foreign modules as networks."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from distill.errors import UserError
from distill.models.adapters import LogitNetwork, TimmNetwork


def build(name: str, **how) -> TimmNetwork:
    torch.manual_seed(0)
    return TimmNetwork(**{"name": name, "pretrained": False, "drop_path": None, "num_classes": 7, **how})


# what each can answer: number of stages, a map whose mean the classifier reads, a single linear classifier
KINDS = {
    "test_resnet": (5, True, True),
    "test_efficientnet": (5, True, True),
    "test_convnext": (4, False, True),  # its head normalises after the pooling
    "test_vit": (0, False, True),  # all blocks work at one size, and it reads a token
    "mobilenetv3_small_050": (5, False, True),  # its head has a convolution after the pooling
    "efficientvit_m0": (3, False, False),  # a normalisation hides between the pooled vector and the linear layer
    "repvit_m0_9": (4, False, False),  # its classifier is two layers
}


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_answers_as_timm_does(name):
    network = build(name).eval()
    stages, final, pooled = KINDS[name]
    size = network.preferred()[2] or 64
    images = torch.rand(2, 3, size, size)
    answer = network(images)
    torch.testing.assert_close(answer.logits, network.published(images), rtol=1e-4, atol=1e-5)
    assert len(answer.stages) == stages
    widths = [x.shape[-1] for x in answer.stages]
    assert widths == sorted(set(widths), reverse=True)
    assert answer.preacts == ()
    assert (answer.final is not None) == final
    assert (answer.pooled is not None) == pooled
    if pooled:
        torch.testing.assert_close(network.classifier(answer.pooled), answer.logits)
    else:
        with pytest.raises(UserError, match="does not end in one linear layer"):
            _ = network.classifier
    if final:
        torch.testing.assert_close(answer.final.mean((2, 3)), answer.pooled)


def test_stages_are_what_timm_calls_features():
    network = build("test_resnet").eval()
    images = torch.rand(2, 3, 64, 64)
    features = timm.create_model("test_resnet", features_only=True).eval()
    features.load_state_dict(network.published.state_dict(), strict=False)
    for ours, theirs in zip(network(images).stages, features(images), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_published_format_is_timms():
    assert list(build("test_resnet").published.state_dict()) == list(timm.create_model("test_resnet").state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "efficientvit_m0"])
def test_trains_and_counts_each_batch_once(name):
    network = build(name)
    assert all(module.training for module in network.modules())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert not any(value for key, value in before.items() if key.endswith("num_batches_tracked"))  # nor did the probe
    size = network.preferred()[2] or 32
    network(torch.rand(2, 3, size, size)).logits.square().sum().backward()
    counts = [value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counts
    assert all(value == 1 for value in counts)
    assert all(p.grad is not None for p in network.parameters())


def test_logits_are_float32_in_mixed_precision():
    network = build("test_resnet").to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = network(torch.rand(2, 3, 64, 64))
    assert (answer.logits.dtype, answer.pooled.dtype) == (torch.float32, torch.float32)
    assert answer.final.dtype == torch.bfloat16


def test_prefers_what_its_weights_were_trained_with(monkeypatch):
    assert build("test_resnet").preferred() == (None, None, None)
    assert build("test_vit").preferred() == (None, None, 160)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **how: create(name, **how))  # no download
    assert build("test_resnet", pretrained=True).preferred() == ((0.5,) * 3, (0.5,) * 3, 160)


def test_small_images_are_resized_for_a_fixed_size():
    network = build("test_vit").eval()
    mean, std, size = network.preferred()
    assert mean is None
    assert std is None
    network.normalise(mean=[0.5] * 3, std=[0.5] * 3, input_size=size)
    assert network.shapes(32).logits == 7


def test_drop_path_reaches_the_model():
    images = torch.rand(8, 3, 160, 160)
    network = build("test_vit", drop_path=0.9)
    assert not torch.equal(network(images).logits, network(images).logits)
    network = build("test_vit")
    assert torch.equal(network(images).logits, network(images).logits)


def test_mistakes_are_explained(monkeypatch):
    with pytest.raises(UserError, match=r"no model called 'resnet19'; did you mean .*resnet1"):
        build("resnet19")
    with pytest.raises(UserError, match=r"cannot be built with drop_path=0\.1"):
        build("vgg11", drop_path=0.1)

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match="test_resnet cannot be built with pretrained weights: no network"):
        build("test_resnet", pretrained=True)


class Foreign(nn.Module):
    """A third party's module; `answer` makes of the logits what it returns."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.head = nn.Linear(3, 7)
        self.returns = answer

    def forward(self, x):
        return self.returns(self.head(x.mean((2, 3))))


def test_any_module_that_gives_logits_is_a_network():
    module = Foreign(lambda logits: logits)
    network = LogitNetwork(module=module)
    network.normalise(mean=[0.5] * 3, std=[0.25] * 3, input_size=None)
    images = torch.rand(2, 3, 8, 8)
    answer = network(images)
    torch.testing.assert_close(answer.logits, module((images - 0.5) / 0.25))
    assert (answer.stages, answer.preacts, answer.final, answer.pooled) == ((), (), None, None)
    assert network.published is module
    assert network.shapes(8).logits == 7
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(images).logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (lambda logits: (logits, None), "<class 'tuple'>"),
        (lambda logits: {"logits": logits}, "<class 'dict'>"),
        (lambda logits: F.relu(logits)[:, :, None], r"a tensor of shape \(2, 7, 1\)"),
    ],
)
def test_what_are_no_logits_is_refused(answer, given):
    with pytest.raises(UserError, match=rf"Foreign must answer with its logits.*but answers with {given}"):
        LogitNetwork(module=Foreign(answer))(torch.rand(2, 3, 8, 8))
