"""The device-resident pipeline: what a batch holds depends on seed, epoch and sample alone."""

import types

import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from data_sets import build
from distill.data.resident import ResidentEval, ResidentTrain, crop_and_flip, draw_turns, draw_views, turn
from distill.errors import UserError

IMAGES = torch.randint(256, (23, 6, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(23) % 4
CPU = torch.device("cpu")


def train(*, batch_size=7, rank=0, world=1, seed=3, epoch=0, count=23, flip=True, padding=4, rotation=0.0):
    return ResidentTrain(
        IMAGES[:count],
        LABELS[:count],
        device=CPU,
        padding=padding,
        flip=flip,
        rotation=rotation,
        batch_size=batch_size,
        rank=rank,
        world=world,
        seed=seed,
        epoch=lambda: epoch,
    )


def views_of(batch):
    return batch.index.new_zeros(len(batch), 0) if batch.view is None else batch.view


def by_sample(loader):
    return {
        int(i): (image, int(label), tuple(view.tolist()))
        for batch in loader
        for i, image, label, view in zip(batch.index, batch.images, batch.labels, views_of(batch), strict=True)
    }


def crop_by_loops(image, dy, dx, flip, padding):
    """One pixel at a time: the pixel that a crop of the padded image shows, read from the right where flipped."""
    height, width, _ = image.shape
    out = torch.zeros(3, height, width, dtype=torch.uint8)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y + dy - padding, (width - 1 - x if flip else x) + dx - padding
            if 0 <= from_y < height and 0 <= from_x < width:
                for channel in range(3):
                    out[channel, y, x] = image[from_y, from_x, channel]
    return out


@pytest.mark.parametrize("padding", [0, 2, 4])
def test_crop_and_flip_equal_the_loops(padding):
    views = draw_views(5, padding=padding, flip=True, seed=0, epoch=0)
    views[0] = torch.tensor([2 * padding, 0, 1])
    index = torch.tensor([3, 0, 22, 3, 7])
    padded = torch.zeros(23, 6 + 2 * padding, 5 + 2 * padding, 3, dtype=torch.uint8)
    padded[:, padding : padding + 6, padding : padding + 5] = IMAGES
    cropped = crop_and_flip(padded, index, views, padding=padding)
    for row, i in enumerate(index):
        assert torch.equal(cropped[row], crop_by_loops(IMAGES[i], *views[row].tolist(), padding))
    assert cropped.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_holds_what_its_view_names():
    for batch in train(batch_size=23):
        for image, i, view in zip(batch.images, batch.index, batch.view, strict=True):
            expected = crop_by_loops(IMAGES[i], *view.tolist(), 4)
            assert torch.equal(image, expected.float() / 255)
        assert torch.equal(batch.labels, LABELS[batch.index])
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_without_padding_and_flip_images_come_as_they_are():
    for batch in train(padding=0, flip=False):
        assert torch.equal(batch.images, IMAGES[batch.index].permute(0, 3, 1, 2).float() / 255)
        assert not batch.view.any()


def test_views_cover_their_range_evenly():
    views = draw_views(20000, padding=4, flip=True, seed=1, epoch=5)
    for column, values in ((0, 9), (1, 9), (2, 2)):
        counts = views[:, column].bincount()
        assert len(counts) == values
        assert counts.double().div(20000 / values).sub(1).abs().max() < 0.1
    assert not draw_views(100, padding=4, flip=False, seed=1, epoch=5)[:, 2].any()


@pytest.mark.parametrize("batch_size", [4, 7, 23, 100])
def test_every_sample_comes_once_and_the_same_in_any_batch_size(batch_size):
    reference, seen = by_sample(train()), by_sample(train(batch_size=batch_size))
    assert sorted(seen) == list(range(23))
    for i, (image, label, view) in seen.items():
        assert torch.equal(image, reference[i][0])
        assert (label, view) == reference[i][1:]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_rows_joined_are_the_batch_of_one_process(world):
    # 23 rows in batches of 9: shares are uneven and the last batch is partial
    ranks = [list(train(batch_size=9, rank=rank, world=world)) for rank in range(world)]
    whole = list(train(batch_size=9))
    assert [len(batch) for batch in whole] == [9, 9, 5]
    for joined, *parts in zip(whole, *ranks, strict=True):
        for name in ("images", "labels", "index", "view"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(joined, name))
        rows = tuple(len(part) for part in parts)
        assert all(part.rows == (rows if world > 1 else ()) for part in parts)


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 4}])
def test_another_epoch_or_seed_has_another_order_and_other_views(change):
    one, other = next(iter(train(batch_size=23))), next(iter(train(batch_size=23, **change)))
    assert not torch.equal(one.index, other.index)
    assert not torch.equal(one.view[one.index.argsort()], other.view[other.index.argsort()])


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_a_resumed_epoch_gives_the_remaining_batches(done, same):
    loader = train(epoch=2)
    batches = list(loader)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    state = loader.state_dict()
    assert state["position"] == done

    resumed = train(epoch=2)
    iter(resumed)  # Lightning asks for one that it never draws from, before it loads the state and after
    resumed.load_state_dict(state)
    iter(resumed)
    assert resumed.state_dict() == state
    rest = list(resumed)
    # a state at the end of an epoch begins the next
    expected = batches[done:] or batches
    assert all(same(a, b) for a, b in zip(rest, expected, strict=True))
    assert len(list(resumed)) == 4


def test_a_position_belongs_to_its_epoch():
    loader = train(epoch=1)
    loader.load_state_dict({"position": 2, "epoch": 0})
    assert len(list(loader)) == 4
    loader.load_state_dict({"position": 2, "epoch": 1})
    assert len(list(loader)) == 2


def test_the_epoch_is_read_when_its_first_batch_is_drawn():
    loader, now = train(), [0]
    loader.epoch = lambda: now[0]
    iterator = iter(loader)
    now[0] = 5
    assert torch.equal(next(iterator).index, next(iter(train(epoch=5))).index)


@pytest.mark.parametrize(("count", "batch_size", "world"), [(23, 7, 3), (23, 2, 4), (21, 4, 2)])
def test_a_batch_smaller_than_the_ranks_is_refused(count, batch_size, world):
    with pytest.raises(UserError, match=rf"{world} devices .* {count} training images .* batches of {batch_size}"):
        train(count=count, batch_size=batch_size, world=world)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        train(batch_size=0)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_sees_every_image_once_in_order_and_every_rank_as_many_batches(world):
    ranks = [
        list(ResidentEval(IMAGES[:9], LABELS[:9], device=CPU, batch_size=4, rank=rank, world=world))
        for rank in range(world)
    ]
    assert [len(batches) for batches in ranks] == [3] * world  # the last batch has one row, most ranks none of it
    joined = [part for parts in zip(*ranks, strict=True) for part in parts]
    assert torch.cat([part.index for part in joined]).tolist() == list(range(9))
    assert torch.equal(torch.cat([part.images for part in joined]), IMAGES[:9].permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(torch.cat([part.labels for part in joined]), LABELS[:9])
    if world == 4:
        assert joined[-1].images.shape == (0, 3, 6, 5)
        assert joined[-1].rows == (1, 0, 0, 0)


def test_the_module_remembers_what_was_read(tiny):
    data = tiny()
    assert data.labels.tolist() == (torch.arange(23) % 4).tolist()
    assert (data.num_samples, data.evaluated_on, data.class_names) == (23, "test", [])
    assert [len(data.train_dataloader()), len(data.val_dataloader()), len(data.test_dataloader())] == [4, 3, 3]


def test_a_holdout_is_taken_from_the_training_set_whatever_the_seed(tiny):
    whole, data, other = tiny(), tiny(holdout=8), tiny(holdout=8, seed=11)
    assert (data.num_samples, data.evaluated_on) == (15, "holdout")
    held = torch.cat([batch.images for batch in data.val_dataloader()])
    assert torch.equal(held, torch.cat([batch.images for batch in other.val_dataloader()]))
    assert torch.cat([batch.labels for batch in data.val_dataloader()]).bincount().tolist() == [2, 2, 2, 2]
    assert len(torch.cat([batch.labels for batch in data.test_dataloader()])) == 9

    plain = {"flip": False, "padding": 0}
    kept = {
        int(i): image
        for batch in tiny(holdout=8, **plain).train_dataloader()
        for i, image in zip(batch.index, batch.images, strict=True)
    }
    assert sorted(kept) == list(range(15))  # the index counts what is left, so that it fits buffers of num_samples
    images = {tuple(image.flatten().tolist()) for image in [*kept.values(), *held]}
    everything = {
        tuple(image.flatten().tolist()) for batch in tiny(**plain).train_dataloader() for image in batch.images
    }
    assert images == everything
    assert len(images) == whole.num_samples


@pytest.mark.parametrize("holdout", [-1, 20, 23])
def test_a_holdout_out_of_range_is_refused(tiny, holdout):
    with pytest.raises(UserError, match=f"holdout={holdout} .* 23 training images 0 to 19"):
        tiny(holdout=holdout)


def test_a_label_outside_the_classes_is_refused(tiny):
    with pytest.raises(UserError, match=r"label 3, .* num_classes is 3"):
        tiny(num_classes=3)


@pytest.mark.parametrize("padding", [-1, 128])
def test_a_padding_that_views_cannot_name_is_refused(tiny, padding):
    with pytest.raises(UserError, match=f"padding={padding}"):
        tiny(padding=padding)


def test_rank_world_device_and_epoch_are_the_trainers(tiny):
    data = tiny()
    strategy = types.SimpleNamespace(root_device=torch.device("meta"))
    data.trainer = types.SimpleNamespace(global_rank=1, world_size=2, strategy=strategy, current_epoch=6)
    loader = data.train_dataloader()
    assert (loader.cuts.rank, loader.cuts.world, loader.images.device.type, loader.epoch()) == (1, 2, "meta", 6)
    assert data.val_dataloader().cuts.rank == 1


def test_a_batch_moves_as_a_whole(tiny):
    data = tiny()
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    devices = {moved.images.device.type, moved.labels.device.type, moved.index.device.type, moved.view.device.type}
    assert devices == {"meta"}


# ---------------------------------------------------------------------- rotation


def test_turns_are_uniform_and_of_their_epoch_and_seed():
    turns = draw_turns(20000, rotation=20, seed=1, epoch=5)
    assert turns.abs().max() <= 20
    counts = turns.div(4).add(5).floor().long().bincount()
    assert len(counts) == 10
    assert counts.double().div(2000).sub(1).abs().max() < 0.1
    for change in ({"seed": 2}, {"epoch": 6}):
        assert not torch.equal(turns, draw_turns(20000, **{"rotation": 20, "seed": 1, "epoch": 5, **change}))


def test_images_turn_as_torchvisions_do():
    image = torch.randint(256, (3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(image[None], size=(40, 40)).repeat(4, 1, 1, 1)
    degrees = torch.tensor([0.0, 90.0, -20.0, 13.7])
    turned = turn(images, degrees)
    assert turned.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(turned[0], images[0])
    assert torch.equal(turned[1], images[1].rot90(dims=(1, 2)))
    for number, angle in ((2, -20.0), (3, 13.7)):
        theirs = tvf.rotate(images[number], angle)
        # a centre of a pixel may fall on the border of two
        assert (turned[number] == theirs).float().mean() > 0.99
        assert (turned[number][:, 0, 0] == 0).all()


@pytest.mark.parametrize("batch_size", [4, 23])
def test_a_sample_turns_the_same_in_any_batch_size(batch_size):
    reference, seen = by_sample(train(rotation=180.0)), by_sample(train(rotation=180.0, batch_size=batch_size))
    assert all(torch.equal(image, reference[i][0]) for i, (image, *_) in seen.items())
    upright = by_sample(train())
    assert sum(not torch.equal(image, upright[i][0]) for i, (image, *_) in seen.items()) > 15


def test_turned_views_have_no_names():
    loader = train(rotation=5.0)
    assert all(batch.view is None and batch.names is None for batch in loader)


def test_the_strong_view_turns_by_itself(monkeypatch):
    # without the operations, the strong view is a weak one of its own
    monkeypatch.setattr("distill.data.resident.strengthen", lambda images, drawn: images)
    loader = train(rotation=180.0, padding=0, flip=False, batch_size=23)
    loader.strong = True
    (batch,) = loader
    upright = IMAGES[batch.index].permute(0, 3, 1, 2).float() / 255
    for images in (batch.images, batch.strong):
        assert (images != upright).flatten(1).any(1).float().mean() > 0.8
    assert (batch.images != batch.strong).flatten(1).any(1).float().mean() > 0.8


def test_views_with_rotation_are_without_number(tiny):
    assert tiny().num_views == 50
    data = build("tiny_imagenet", "", rotation=20)
    assert data.num_views is None
    with pytest.raises(NotImplementedError, match="TinyImageNet has no finite set of views"):
        data.fingerprint()


@pytest.mark.parametrize("rotation", [-1, 181])
def test_a_rotation_out_of_range_is_refused(rotation):
    with pytest.raises(UserError, match=f"rotation={rotation} is out of range: it must lie in 0 to 180 degrees"):
        build("stl10", "", rotation=rotation)
