"""timm's RandAugment: every operation and every magnitude against timm's own, on photographs."""

import random

import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms.v2 import functional as tvf

from distill.data.randaugment import GEOMETRIC, OPERATIONS, draw, filled
from photos import pieces

FILL = (124, 116, 104)  # ImageNet's mean, as timm rounds it
# ours in the order of timm's increasing transforms
NAMES = [operation.__name__ for operation, _ in OPERATIONS]
SHAPES = [(32, 32), (48, 48)]
OF_GEOMETRIC = [operation.__name__ for operation in GEOMETRIC]


def theirs(number: int, level: float, negative: bool) -> auto_augment.AugmentOp:
    """Timm's operation at a level, always applied."""
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC, "magnitude_std": 0.0}
    name = auto_augment._RAND_INCREASING_TRANSFORMS[number]
    return auto_augment.AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)


@pytest.fixture(scope="module")
def photos():
    return {shape: pieces(*shape) for shape in SHAPES}


def test_the_list_is_timms():
    assert len(auto_augment._RAND_INCREASING_TRANSFORMS) == 15
    assert NAMES[-1] == "identity"
    short = [
        name.removesuffix("Increasing").removesuffix("Rel").lower() for name in auto_augment._RAND_INCREASING_TRANSFORMS
    ]
    assert [name.replace("_", "") for name in NAMES[:-1]] == short


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", range(15), ids=NAMES[:15])
def test_an_operation_gives_what_timms_gives(number, shape, photos, monkeypatch):
    images, function, makes = photos[shape], filled(FILL)[number], OPERATIONS[number][1]
    levels = torch.tensor([0.3, 1.7, 3.1, 4.9, 5.5, 6.6, 7.2, 8.1, 8.8, 9.0, 9.7, 10.0])
    if NAMES[number] == "posterize":
        levels[-1] = 9.9  # see below
    for sign in (1.0, -1.0):
        found = function(images.float(), makes(levels, torch.full_like(levels, sign)))
        assert torch.equal(found, found.round())
        # where timm tosses a coin for the sign
        monkeypatch.setattr(random, "random", lambda sign=sign: 0.1 if sign > 0 else 0.9)
        expected = [
            theirs(number, level, sign < 0)(tvf.to_pil_image(x))
            for x, level in zip(images, levels.tolist(), strict=True)
        ]
        expected = torch.stack([tvf.pil_to_tensor(image) for image in expected])
        distance = (found - expected).abs()
        if NAMES[number] in OF_GEOMETRIC:
            # a place on the very edge of the image may fall to either side
            assert ((distance > 1).any(1)).float().mean() < 0.002
        else:
            assert distance.max() <= 1
        assert (distance > 0).float().mean() < 0.01
        assert (found != images).any()


def test_no_bits_are_black(photos):
    """As Pillow answered until it came to refuse 0 bits, which timm still asks for at the highest level."""
    number = NAMES.index("posterize")
    none = OPERATIONS[number][1](torch.full((12,), 10.0), torch.ones(12))
    assert not none.any()
    assert not filled(FILL)[number](photos[32, 32].float(), none).any()


def test_draws_as_many_operations_and_magnitudes_as_timm():
    count = 60_000
    operations, magnitudes = draw(count, magnitude=9, deviation=0.5, generator=torch.Generator().manual_seed(0))
    assert operations.shape == magnitudes.shape == (count, 2)
    for column in operations.T:
        counts = column.bincount(minlength=16)
        assert counts[15] / count == pytest.approx(0.5, abs=0.01)
        assert (counts[:15] / (count / 30)).sub(1).abs().max() < 0.08
    both = (operations[:, 0] == 15) & (operations[:, 1] == 15)
    assert both.float().mean() == pytest.approx(0.25, abs=0.01)
    slopes = magnitudes[operations == NAMES.index("shear_x")]
    levels = slopes.abs() / 0.3 * 10
    assert levels.mean() == pytest.approx(9, abs=0.03)
    assert levels.std() == pytest.approx(0.48, abs=0.03)  # a little less than .5: levels end at 10
    assert levels.max() <= 10
    assert (slopes > 0).float().mean() == pytest.approx(0.5, abs=0.03)
    bits = magnitudes[operations == NAMES.index("posterize")]
    assert set(bits.tolist()) == {0.0, 1.0} | ({2.0} if (bits == 2).any() else set())


@pytest.mark.parametrize("level", [-5.0, 25.0])
def test_levels_stay_within_0_and_10(level):
    operations, magnitudes = draw(4000, magnitude=level, deviation=0.5, generator=torch.Generator().manual_seed(0))
    degrees = magnitudes[operations == NAMES.index("rotate")].abs()
    assert set(degrees.tolist()) == {0.0 if level < 0 else 30.0}
