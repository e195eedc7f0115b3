"""The transformers' augmentation as a data set: who gets what depends on seed, epoch and sample alone."""

from dataclasses import dataclass

import pytest
import torch

import harness
from distill.build import build
from distill.data.augmented import Augmentation, AugmentedData, AugmentedTrain
from distill.data.base import Part
from distill.data.randaugment import OPERATIONS
from distill.errors import UserError

IMAGES = torch.randint(256, (23, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NUMBERS = {
    **{"size": 16, "scale": (0.08, 1.0), "ratio": (0.75, 4 / 3), "flip": True, "magnitude": 9, "deviation": 0.5},
    **{"erase": 0.5, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}
NOTHING = len(OPERATIONS) - 1


def loader(*, batch_size=7, rank=0, world=1, seed=3, epoch=2, **numbers):
    return AugmentedTrain(
        IMAGES,
        torch.arange(23) % 4,
        device=torch.device("cpu"),
        augment=Augmentation(**{**NUMBERS, **numbers}),
        batch_size=batch_size,
        rank=rank,
        world=world,
        seed=seed,
        epoch=lambda: epoch,
    )


def by_sample(batches):
    return {int(i): image for batch in batches for i, image in zip(batch.index, batch.images, strict=True)}


def test_a_batch_is_what_it_should_be():
    seen = torch.cat([batch.index for batch in loader()])
    assert sorted(seen.tolist()) == list(range(23))
    for batch in loader(erase=0):
        assert batch.images.shape[1:] == (3, 16, 16)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= batch.images.min() < batch.images.max() <= 1
        assert torch.equal(batch.labels, batch.index % 4)
        assert batch.view is None
        assert batch.names is None


@pytest.mark.parametrize("numbers", [{"batch_size": 4}, {"batch_size": 23}, {"batch_size": 100}, {"world": 2}])
def test_a_samples_image_depends_on_seed_and_epoch_alone(numbers):
    expected, ranks = by_sample(loader()), range(numbers.get("world", 1))
    found = {i: image for rank in ranks for i, image in by_sample(loader(**numbers, rank=rank)).items()}
    assert sorted(found) == list(range(23))
    assert all(torch.equal(found[i], expected[i]) for i in found)


@pytest.mark.parametrize("change", [{"epoch": 3}, {"seed": 4}])
def test_another_epoch_or_seed_has_other_images(change):
    one, other = by_sample(loader()), by_sample(loader(**change))
    assert not any(torch.equal(one[i], other[i]) for i in one)


def test_a_resumed_epoch_gives_the_remaining_images(same):
    batches, resumed = list(loader()), loader()
    resumed.load_state_dict({"position": 2, "epoch": 2})
    rest = list(resumed)
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(rest, batches[2:], strict=True))


def test_nothing_waits_for_the_device():
    # whatever reads a value of the device, as sizes that depend on data do, fails on this one
    augment = Augmentation(**NUMBERS)
    drawn = augment.draw(200, side=12, seed=0, epoch=0)
    images = torch.empty(200, 3, 12, 12, dtype=torch.uint8, device="meta")
    assert augment(images, drawn, augment.noise(0).to("meta")).shape == (200, 3, 16, 16)


def test_steps_come_in_timms_order():
    """Crop, mirror, operations, and last the erasing, in which the noise is standard after normalisation."""
    augment = Augmentation(**{**NUMBERS, "size": 12})
    drawn = augment.draw(3, side=12, seed=0, epoch=0)
    images = IMAGES[:3].permute(0, 3, 1, 2)
    whole = torch.tensor([[0, 0, 12, 12]] * 3)
    nothing = torch.full((3, 2), NOTHING)
    nowhere = torch.zeros(3, 4, dtype=torch.long)
    noise = augment.noise(0)
    plain = drawn._replace(boxes=whole, mirrored=torch.tensor([False, True, True]), operations=nothing, erased=nowhere)
    found = augment(images, plain, noise)
    assert torch.equal(found[0], images[0] / 255)
    assert torch.equal(found[1], images[1].flip(2) / 255)
    inverted = nothing.clone()
    inverted[2, 1] = 2
    erased = nowhere.clone()
    erased[2] = torch.tensor([0, 0, 2, 3])
    found = augment(images, plain._replace(operations=inverted, erased=erased), noise)
    assert torch.equal(found[:2], augment(images, plain, noise)[:2])
    assert torch.equal(found[2, :, 2:], (255 - images[2].flip(2).float())[:, 2:] / 255)
    start = int(drawn.starts[2])
    own = noise[start : start + 432].view(3, 12, 12)[:, :2, :3]
    mean, std = (torch.tensor(NUMBERS[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close((found[2, :, :2, :3] - mean) / std, own)
    assert noise.std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 0}, "crop_size must be at least 1"),
        ({"scale": (0.5, 1.5)}, "crop_scale must be two numbers"),
        ({"ratio": (2.0, 1.0)}, "crop_ratio must be two numbers"),
        ({"magnitude": 11}, "magnitude must lie in 0 to 10"),
        ({"deviation": -1}, "magnitude_std must be at least 0"),
        ({"erase": 2}, "erase must lie in 0 to 1"),
    ],
)
def test_refuses_what_makes_no_images(change, said):
    with pytest.raises(UserError, match=said):
        Augmentation(**{**NUMBERS, **change})


@dataclass(kw_only=True, eq=False, repr=False)
class Tiny(AugmentedData):
    """23 + 9 images of noise in 4 classes."""

    def read(self):
        return Part(IMAGES, torch.arange(23) % 4), Part(IMAGES[:9], torch.arange(9) % 4)


@pytest.fixture
def data():
    node = harness.configure("data=cifar100_vit")["data"]
    own = {"_target_": f"{__name__}.Tiny", "num_classes": 4, "size": 12, "crop_size": 20, "batch_size": 7}
    numbers = {key: value for key, value in {**node, **own}.items() if key not in ("_target_", "download")}
    found = Tiny(**numbers)
    found.setup()
    return found


def test_training_images_are_cropped_and_others_come_as_they_are(data):
    assert (data.size, data.train_size, data.num_views, data.padding) == (12, 20, None, 0)
    assert next(iter(data.train_dataloader())).images.shape == (7, 3, 20, 20)
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch.images, IMAGES[:9].permute(0, 3, 1, 2) / 255)


def test_views_without_number_have_no_fingerprint(data):
    with pytest.raises(NotImplementedError, match="no finite set of views"):
        data.fingerprint()


def test_there_is_no_second_view(data):
    data.strong_views = True
    with pytest.raises(UserError, match="reads a second, strongly augmented view"):
        data.train_dataloader()


def test_a_wrong_number_is_said_in_one_sentence():
    node = harness.configure("data=cifar100_vit", "data.erase=2")["data"]
    with pytest.raises(UserError, match=r"^data\.erase must lie in 0 to 1$"):
        build(node, what="data")


def test_as_published():
    node = harness.configure("data=cifar100_vit")["data"]
    assert (node["crop_size"], node["magnitude"], node["magnitude_std"], node["erase"]) == (224, 9, 0.5, 0.25)
    assert harness.configure("data=cifar100_vit")["recipe"]["epochs"] == 300
