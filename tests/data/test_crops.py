"""Random crops and erased rectangles, against PIL, timm and loops."""

import random

import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional as tf
from torchvision.transforms.v2 import functional as tvf

from distill.data.crops import draw_boxes, draw_erasures, erase, resized_crops
from photos import pieces

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def boxes(count, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return draw_boxes(count, side=side, area=SCALE, ratio=RATIO, whole=True, generator=generator)


@pytest.mark.parametrize("size", [224, 64, 32, 17])
def test_resizes_as_pil_does(size):
    images = pieces(32, 32)
    chosen, _ = boxes(12)
    chosen[0], chosen[1] = torch.tensor([0, 0, 32, 32]), torch.tensor([3, 5, 32 - 3, 7])
    found = resized_crops(images, chosen, size=size)
    expected = torch.stack(
        [
            tvf.pil_to_tensor(tf.resized_crop(tvf.to_pil_image(x), *box, [size, size], Image.Resampling.BICUBIC))
            for x, box in zip(images, chosen.tolist(), strict=True)
        ]
    )
    distance = (found - expected).abs()
    assert distance.max() <= 1
    assert (distance > 0).float().mean() < 0.02


def test_boxes_are_spread_as_timms():
    random.seed(0)
    image = Image.new("RGB", (32, 32))
    theirs = torch.tensor([RandomResizedCropAndInterpolation.get_params(image, SCALE, RATIO) for _ in range(20_000)])
    ours, _ = boxes(40_000)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= 32).all()
    for a, b in zip(ours.float().T, theirs.float().T, strict=True):
        assert a.mean() == pytest.approx(b.mean().item(), abs=0.25)
        assert a.std() == pytest.approx(b.std().item(), abs=0.25)
    joint = [(rows[:, 2] * rows[:, 3] / 1024.0).sort().values for rows in (ours[::2], theirs)]
    assert (joint[0] - joint[1]).abs().max() < 0.05


def test_a_box_that_fits_nowhere_is_the_whole_image():
    generator = torch.Generator().manual_seed(0)
    found = draw_boxes(5, side=32, area=(1.0, 1.0), ratio=(2.0, 2.0), whole=True, generator=generator)
    assert found[0].tolist() == [[0, 0, 32, 32]] * 5
    assert not found[1].any()


def test_erasures_are_spread_as_timms():
    random.seed(0)
    eraser = RandomErasing(probability=0.25, mode="pixel", device="cpu")
    theirs = torch.stack([eraser(torch.zeros(1, 32, 32))[0] != 0 for _ in range(6000)]).float()
    drawn = draw_erasures(40_000, side=32, probability=0.25, generator=torch.Generator().manual_seed(0))
    erased = drawn[:, 2] > 0
    assert erased.float().mean() == pytest.approx(0.25, abs=0.01)
    assert not drawn[~erased].any()
    assert drawn[erased][:, 2:].max() < 32
    starts = torch.zeros(40_000, dtype=torch.long)
    ours = erase(torch.zeros(40_000, 1, 32, 32), drawn, torch.ones(1024), starts, mean=[0.0], std=[1.0])[:, 0]
    assert ours.mean() == pytest.approx(theirs.mean().item(), rel=0.08)
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.03


def test_an_erased_box_by_loops():
    images, noise = torch.rand(2, 3, 6, 5), torch.arange(500.0)
    found = erase(
        images,
        torch.tensor([[1, 2, 3, 2], [0, 0, 0, 0]]),
        noise,
        torch.tensor([7, 300]),
        mean=[1.0, 2.0, 3.0],
        std=[0.5, 0.5, 2.0],
    )
    assert torch.equal(found[1], images[1])
    for channel in range(3):
        for row in range(6):
            for column in range(5):
                inside = 1 <= row < 4 and 2 <= column < 4
                drawn = (7 + 30 * channel + 5 * row + column) * (0.5, 0.5, 2.0)[channel] + 1 + channel
                assert found[0, channel, row, column] == (drawn if inside else images[0, channel, row, column])
