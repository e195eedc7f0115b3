"""What every data set with an official layout has in common, on small files in it."""

import types

import torch


def at(data, *, rank=0, world=1, epoch=0):
    """A data set as one of several processes holds it."""
    strategy = types.SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = types.SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy, current_epoch=epoch)
    return data


def test_the_ranks_rows_joined_are_the_batch_of_one_process(official):
    for make in ("train_dataloader", "test_dataloader"):
        ranks = [list(getattr(at(official(batch_size=7), rank=rank, world=2), make)()) for rank in range(2)]
        whole = list(getattr(at(official(batch_size=7)), make)())
        assert len(whole) > 1
        for joined, *parts in zip(whole, *ranks, strict=True):
            for name in ("images", "labels", "index"):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(joined, name))
            assert [part.rows for part in parts] == [tuple(len(part) for part in parts)] * 2


def test_every_training_image_comes_once_with_its_label_and_another_view_in_every_epoch(official):
    seen = []
    for epoch in range(2):
        data = at(official(), epoch=epoch)
        batches = list(data.train_dataloader())
        index = torch.cat([batch.index for batch in batches])
        assert sorted(index.tolist()) == list(range(data.num_samples))
        assert torch.equal(torch.cat([batch.labels for batch in batches]), data.labels[index])
        seen.append(torch.cat([batch.images for batch in batches])[index.argsort()])
    assert not torch.equal(*seen)


def test_a_holdout_is_taken_from_the_training_images(official):
    data = official(holdout=1)
    assert data.evaluated_on == "holdout"
    assert data.num_samples == len(official().labels) - 1
    assert sum(len(batch) for batch in data.val_dataloader()) == 1


def test_strong_views_come_beside_where_a_method_asks(official):
    data = official()
    data.strong_views = True
    batch = next(iter(data.train_dataloader()))
    assert batch.strong.shape == batch.images.shape
    assert not torch.equal(batch.strong, batch.images)
