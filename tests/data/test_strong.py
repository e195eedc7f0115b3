"""Strong views: every operation against PIL's, the square by hand, and who gets which whatever the batch."""

import types

import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as tvf

from distill.data import strong
from distill.data.resident import ResidentTrain
from distill.data.strong import FILL, OPERATIONS, Draw, TwoViews, draw, strengthen
from distill.data.workers import TrainTransform
from photos import pieces

NAMES = [operation.__name__ for operation, *_ in OPERATIONS]
SHAPES = [(32, 32), (24, 41)]  # height, width


def affine(image, *numbers):
    return image.transform(image.size, Image.Transform.AFFINE, numbers)


BY_PIL = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "rotate": lambda image, v: image.rotate(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "shear_x": lambda image, v: affine(image, 1, v, 0, 0, 1, 0),
    "shear_y": lambda image, v: affine(image, 1, 0, 0, v, 1, 0),
    "solarize": ImageOps.solarize,
    "translate_x": lambda image, v: affine(image, 1, 0, v * image.width, 0, 1, 0),
    "translate_y": lambda image, v: affine(image, 1, 0, 0, 0, 1, v * image.height),
}


@pytest.fixture(scope="module")
def photos():
    """Pieces of photographs, 12 of each shape, uint8."""
    return {shape: pieces(*shape) for shape in SHAPES}


def to_pil(image):
    return tvf.to_pil_image(image)


def numbers_of(name, count):
    (low, high), steps = next(limits for op, *limits in OPERATIONS if op.__name__ == name), torch.linspace(0, 1, count)
    return low + (high - low) * (0.003 + 0.99 * steps)


# ---------------------------------------------------------------------- operations


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_gives_what_pil_gives(name, shape, photos):
    images = photos[shape]
    magnitudes = numbers_of(name, len(images))
    found = getattr(strong, name)(images.float(), magnitudes)
    assert torch.equal(found, found.round())
    expected = torch.stack(
        [
            tvf.pil_to_tensor(BY_PIL[name](to_pil(image), v))
            for image, v in zip(images, magnitudes.tolist(), strict=True)
        ]
    )
    distance = (found - expected).abs()
    if name in {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}:
        # PIL counts places in whole 65536ths, so that a pixel half-way between two may fall to the other
        assert (distance.amax(1) > 0).float().mean() < 0.002
    else:
        assert distance.max() <= 1
        assert (distance > 0).float().mean() < 0.01
    if name != "identity":
        assert (found != images).any()


def test_an_image_of_one_grey_stays_as_it_is_where_there_is_nothing_to_spread():
    flat = torch.full((1, 3, 8, 8), 77.0)
    for name in ("autocontrast", "equalize"):
        assert torch.equal(getattr(strong, name)(flat, torch.zeros(1)), flat)


def test_the_list_is_fixmatchs():
    assert len(set(NAMES)) == len(NAMES) == 14
    assert sorted(BY_PIL) == NAMES


# ---------------------------------------------------------------------- the square


def cut(image, side, across, down):
    drawn = Draw(torch.full((1, 2), NAMES.index("identity")), torch.zeros(1, 2), torch.tensor([[side, across, down]]))
    return strengthen(image[None], drawn)[0]


@pytest.mark.parametrize(
    ("numbers", "columns", "rows"),
    [
        ((0.25, 0.5, 0.5), range(6, 11), range(4, 9)),  # of 16 x 12: side 4, centre (8, 6)
        ((0.5, 0.0, 0.9), range(9), range(6, 12)),  # begins at the left edge, ends at the lower one
        ((0.0, 0.99, 0.0), range(15, 16), range(1)),
    ],
)
def test_the_square_by_hand(numbers, columns, rows):
    found = cut(torch.zeros(3, 12, 16, dtype=torch.uint8), *numbers)
    for channel, value in enumerate(FILL):
        expected = torch.zeros(12, 16)
        for row in rows:
            for column in columns:
                expected[row, column] = value
        assert torch.equal(found[channel].float(), expected)


def test_squares_are_those_that_pil_draws(photos):
    for image, cuts in zip(photos[32, 32], draw(12, generator=None).cuts.tolist(), strict=True):
        side, across, down = (32 * number for number in cuts)
        expected = to_pil(image)
        left, top = int(max(0, across - side / 2)), int(max(0, down - side / 2))
        ImageDraw.Draw(expected).rectangle((left, top, min(32, left + side), min(32, top + side)), FILL)
        assert torch.equal(cut(image, *cuts), tvf.pil_to_tensor(expected))


# ---------------------------------------------------------------------- what is drawn


def test_operations_and_magnitudes_are_drawn_evenly():
    drawn = draw(42000, generator=torch.Generator().manual_seed(0))
    for column in drawn.operations.T:
        assert column.bincount().div(3000).sub(1).abs().max() < 0.06
    together = (14 * drawn.operations[:, 0] + drawn.operations[:, 1]).bincount(minlength=196)
    assert 130 < together.min() <= together.max() < 300  # 214 each; with replacement
    for place, (_, low, high) in enumerate(OPERATIONS):
        own = drawn.magnitudes[drawn.operations == place]
        assert low <= own.min() <= own.max() <= high
        quarters = ((own - low) / (high - low or 1)).mul(4).long().clamp(max=3).bincount()
        assert high == low or quarters.div(len(own) / 4).sub(1).abs().max() < 0.15
    side, *centre = drawn.cuts.T
    assert side.max() <= 0.5
    for values, largest in ((side, 0.5), (centre[0], 1.0), (centre[1], 1.0)):
        assert values.min() >= 0
        assert values.div(largest / 10).long().bincount().div(4200).sub(1).abs().max() < 0.08


def test_each_row_gets_its_own_operations_in_order(photos):
    images = photos[32, 32].repeat(5, 1, 1, 1)
    drawn = draw(60, generator=torch.Generator().manual_seed(1))
    found = strengthen(images, drawn)
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    for row, image in enumerate(images):
        x = image[None].float()
        for operation, magnitude in zip(drawn.operations[row], drawn.magnitudes[row], strict=True):
            x = OPERATIONS[operation][0](x, magnitude[None])
        assert torch.equal(found[row], cut(x[0].to(torch.uint8), *drawn.cuts[row]))


def test_nothing_waits_for_the_device():
    # whatever reads a value of the device, as sizes that depend on data do, fails on this one
    images = torch.empty(200, 3, 8, 8, dtype=torch.uint8, device="meta")
    assert strengthen(images, draw(200, generator=None)).shape == images.shape


# ---------------------------------------------------------------------- resident images

IMAGES = torch.randint(256, (23, 8, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def loader(*, batch_size=7, rank=0, world=1, seed=3, epoch=2, make_strong=True):
    return ResidentTrain(
        IMAGES,
        torch.arange(23) % 4,
        device=torch.device("cpu"),
        padding=2,
        flip=True,
        strong=make_strong,
        batch_size=batch_size,
        rank=rank,
        world=world,
        seed=seed,
        epoch=lambda: epoch,
    )


def by_sample(batches):
    return {int(i): image for batch in batches for i, image in zip(batch.index, batch.strong, strict=True)}


def test_a_strong_view_is_made_when_asked_for_and_leaves_the_weak_one_as_it_was(same):
    for one, other in zip(loader(), loader(make_strong=False), strict=True):
        assert other.strong is None
        assert one.strong.shape == one.images.shape
        assert one.strong.dtype == torch.float32
        assert one.strong.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= one.strong.min() <= one.strong.max() <= 1
        for name in ("images", "labels", "index", "view", "names"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert not same(one, other)


def test_the_strong_view_has_a_crop_and_flip_of_its_own(monkeypatch):
    monkeypatch.setattr("distill.data.resident.strengthen", lambda images, _: images)
    (batch,) = loader(batch_size=23)
    padded = torch.nn.functional.pad(IMAGES, (0, 0, 2, 2, 2, 2))
    differing = 0
    for sample, image, weak in zip(batch.index.tolist(), batch.strong, batch.images, strict=True):
        crops = [padded[sample, y : y + 8, x : x + 7] for y in range(5) for x in range(5)]
        crops = [c.permute(2, 0, 1).float() / 255 for crop in crops for c in (crop, crop.flip(1))]
        assert any(torch.equal(crop, image) for crop in crops)
        differing += not torch.equal(image, weak)
    assert differing > 15


@pytest.mark.parametrize("numbers", [{"batch_size": 4}, {"batch_size": 23}, {"batch_size": 100}, {"world": 2}])
def test_a_samples_strong_view_depends_on_seed_and_epoch_alone(numbers):
    expected, ranks = by_sample(loader()), range(numbers.get("world", 1))
    found = {i: image for rank in ranks for i, image in by_sample(loader(**numbers, rank=rank)).items()}
    assert sorted(found) == list(range(23))
    assert all(torch.equal(found[i], expected[i]) for i in found)


@pytest.mark.parametrize("change", [{"epoch": 3}, {"seed": 4}])
def test_another_epoch_or_seed_has_other_strong_views(change):
    one, other = by_sample(loader()), by_sample(loader(**change))
    assert sum(torch.equal(one[i], other[i]) for i in one) < 3


def test_a_resumed_epoch_gives_the_remaining_strong_views(same):
    batches, resumed = list(loader()), loader()
    resumed.load_state_dict({"position": 2, "epoch": 2})
    rest = list(resumed)
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(rest, batches[2:], strict=True))


def test_the_data_set_makes_strong_views_once_told_to(tiny):
    data = tiny()
    assert next(iter(data.train_dataloader())).strong is None
    data.strong_views = True
    assert next(iter(data.train_dataloader())).strong is not None
    assert next(iter(data.val_dataloader())).strong is None


# ---------------------------------------------------------------------- image files


@pytest.fixture
def at(folder):
    """A training loader of image files in a given epoch."""

    def build(root, *, epoch=0, make_strong=True, rank=0, world=1, **numbers):
        data = folder(root, **numbers)
        data.setup()
        data.strong_views = make_strong
        strategy = types.SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = types.SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy, current_epoch=epoch)
        return data.train_dataloader()

    return build


def test_workers_make_the_same_strong_views_whatever_their_number(tree, at, same):
    alone, helped, weak = list(at(tree)), list(at(tree, workers=2)), list(at(tree, make_strong=False))
    for one, two, other in zip(alone, helped, weak, strict=True):
        assert same(one, two)
        assert other.strong is None
        assert torch.equal(one.images, other.images)
        assert one.strong.shape == one.images.shape
        for images in (one.images, one.strong):
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert 0 <= images.min() <= images.max() <= 1


def test_a_files_strong_view_depends_on_seed_and_epoch_alone(tree, at):
    expected = by_sample(at(tree))
    for numbers in ({"batch_size": 11}, {"batch_size": 3}):
        found = by_sample(at(tree, **numbers))
        assert all(torch.equal(found[i], expected[i]) for i in expected)
    halves = [by_sample(at(tree, rank=rank, world=2)) for rank in range(2)]
    assert all(torch.equal((halves[0] | halves[1])[i], expected[i]) for i in expected)
    for change in ({"epoch": 1}, {"seed": 9}):
        other = by_sample(at(tree, **change))
        assert not any(torch.equal(other[i], expected[i]) for i in expected)


def test_two_views_begin_with_the_weak_one(photos):
    image, weak = photos[32, 32][0], TrainTransform(16, flip=True)
    torch.manual_seed(5)
    one, other = TwoViews(weak)(image)
    torch.manual_seed(5)
    assert torch.equal(one, weak(image))
    assert not torch.equal(one, other)
