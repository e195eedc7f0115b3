"""timm's models and foreign modules as networks."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from distill.build import build_network
from distill.errors import UserError
from distill.models.adapters import LogitNetwork, TimmNetwork
from distill.optim import spares


def build(name: str, **how) -> TimmNetwork:
    torch.manual_seed(0)
    usual = {"name": name, "pretrained": False, "drop_path": None, "input_size": None, "num_classes": 7}
    return TimmNetwork(**{**usual, **how})


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


# ---------------------------------------------------------------------- built for a size


@pytest.mark.parametrize(("size", "tokens"), [(32, 4), (48, 9), (160, 100)])
def test_a_transformer_is_built_for_the_size_it_is_used_at(size, tokens):
    network = build("test_vit", input_size=size).eval()
    assert network.built_for == size
    assert network.model.patch_embed.num_patches == tokens
    assert network(torch.rand(2, 3, size, size)).pooled.shape == (2, network.classifier.in_features)


def test_a_convolutional_network_is_the_same_for_all_sizes():
    one, other = build("test_resnet", input_size=48), build("test_resnet")
    assert one.built_for is None
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize(("size", "nearest"), [(30, "16 or 32"), (47, "32 or 48"), (8, "16 or 32")])
def test_a_size_that_patches_do_not_cover_is_refused(size, nearest):
    with pytest.raises(
        UserError, match=rf"patches of 16 px, one every 16 px, .* {size} px: set input_size to {nearest}"
    ):
        build("test_vit", input_size=size)


def test_patches_that_overlap_are_counted_right():
    assert build("pit_ti_224", input_size=40)(torch.rand(1, 3, 40, 40)).logits.shape == (1, 7)
    with pytest.raises(UserError, match=r"patches of 16 px, one every 8 px, .* 36 px: set input_size to 32 or 40"):
        build("pit_ti_224", input_size=36)


def node(name: str, **own) -> dict:
    return {"_target_": "distill.models.adapters.TimmNetwork", "name": name, "pretrained": False, "drop_path": None} | {
        "num_classes": 7,
        **own,
    }


@pytest.mark.parametrize(("own", "size"), [({"input_size": 48}, 48), ({"input_size": None}, 160), ({}, 160)])
def test_it_resizes_to_the_size_it_was_built_for(own, size):
    network = build_network(
        node("test_vit", **own), what="student", num_classes=7, mean=[0.5] * 3, std=[0.5] * 3, seed=0
    )
    assert network.input_size == size
    assert network.shapes(32).logits == 7


def test_tokens_and_position_embeddings_are_spared_by_weight_decay():
    spared = {name for name, p in build("deit_tiny_patch16_224", input_size=32).model.named_parameters() if spares(p)}
    assert {"cls_token", "pos_embed", "blocks.0.attn.qkv.bias", "norm.weight", "head.bias"} <= spared
    assert not {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"} & spared


@pytest.mark.parametrize("name", ["t2t_vit_7", "T2T-ViT-14", "t2t-7", "pvt_tiny", "pvt_ti", "pvt_v1_small"])
def test_what_people_look_for_and_timm_has_not(name):
    nearest = "deit_tiny" if name.lower().startswith("t2t") else "pvt_v2_b0"
    with pytest.raises(
        UserError, match=rf"^timm has no .*, so {name} cannot be had; the nearest it has is {nearest}\.$"
    ):
        build(name)
    assert timm.is_model("pvt_v2_b0")
    assert not timm.list_models("*t2t*")


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
