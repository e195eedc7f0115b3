"""Images in class folders, by worker processes."""

import contextlib
import gc
import multiprocessing
import types

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from distill.data.layout import classes_in
from distill.data.workers import Files, TrainTransform, eval_transform
from distill.errors import UserError
from image_files import write_images


def ready(data):
    data.prepare_data()
    data.setup()
    return data


def trainer_at(epoch, rank, world):
    strategy = types.SimpleNamespace(root_device=torch.device("cpu"))
    return types.SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy, current_epoch=epoch)


def noise(height, width):
    """An image of noise, smoothed so that every way of saving it differs little."""
    pixels = torch.randint(256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return tvf.to_pil_image(tvf.resize(pixels, [height, width]))


@pytest.fixture
def at(folder):
    """A training loader in a given epoch."""

    def build(root, *, epoch=0, rank=0, world=1, **numbers):
        data = ready(folder(root, **numbers))
        data.trainer = trainer_at(epoch, rank, world)
        return data.train_dataloader()

    return build


def test_lists_classes_and_images(tree, folder):
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    (tree / "train" / ".cache").mkdir()
    data = ready(folder(tree))
    assert data.class_names == ["cat", "dog"]
    assert data.labels.tolist() == [0] * 5 + [1] * 6
    assert classes_in(str(tree)) == 2
    assert classes_in(str(tree / "nowhere")) == 0


def test_images_in_subfolders_belong_to_the_class(tmp_path, folder):
    write_images(tmp_path, {"train/a/images": 2, "train/b": 1, "test/a": 1, "test/b": 1})
    assert ready(folder(tmp_path, batch_size=2)).labels.tolist() == [0, 0, 1]


def test_training_batches_do_not_depend_on_workers(tree, at, same):
    alone, helped = at(tree, workers=0), at(tree, workers=2)
    for _ in range(2):  # the second time with the same, persistent workers
        one, two = list(alone), list(helped)
        assert [len(batch) for batch in one] == [4, 4, 3]
        assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert sorted(torch.cat([batch.index for batch in one]).tolist()) == list(range(11))
    labels = torch.tensor([0] * 5 + [1] * 6)
    for batch in one:
        assert batch.images.shape[1:] == (3, 16, 16)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.view is None
        assert torch.equal(batch.labels, labels[batch.index])
        assert 0 <= batch.images.min() < 0.2
        assert 0.8 < batch.images.max() <= 1


def test_persistent_workers_hear_of_the_epoch(tree, at, same):
    loader = at(tree, workers=1)
    for epoch in (0, 3):
        loader.epoch = lambda now=epoch: now
        assert all(same(a, b) for a, b in zip(list(loader), list(at(tree, epoch=epoch)), strict=True))


def test_epochs_and_seeds_differ_in_order_and_augmentation(tree, at):
    for change in ({"epoch": 1}, {"seed": 9}):
        one, other = (next(iter(at(tree, batch_size=11, **now))) for now in ({}, change))
        assert not torch.equal(one.index, other.index)
        distance = one.images[one.index.argsort()] - other.images[other.index.argsort()]
        assert (distance.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("batch_size", [3, 11])
def test_an_image_is_the_same_in_any_batch_size(tree, at, batch_size):
    def images(loader):
        return torch.cat([b.images for b in loader])[torch.cat([b.index for b in loader]).argsort()]

    assert torch.equal(images(at(tree)), images(at(tree, batch_size=batch_size)))


def test_the_ranks_rows_joined_are_the_batch_of_one_process(tree, at):
    ranks = [list(at(tree, rank=rank, world=2)) for rank in range(2)]
    for whole, *parts in zip(at(tree), *ranks, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert [part.rows for part in parts] == [tuple(len(part) for part in parts)] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_gives_the_remaining_batches(tree, at, same, workers):
    loader = at(tree, workers=workers)
    batches = list(loader)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    assert state["position"] == 1  # handed out, however many were prefetched
    resumed = at(tree, workers=workers)
    resumed.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(list(resumed), batches[1:], strict=True))
    # and an iterator left half-way does not disturb the next
    assert all(same(a, b) for a, b in zip(list(loader), batches, strict=True))


def test_reading_in_this_process_leaves_its_random_numbers_alone(tree, at):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(at(tree))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_crops_the_centre_in_order(tree, folder, workers):
    data = ready(folder(tree, workers=workers))
    batches = list(data.val_dataloader())
    assert [len(batch) for batch in batches] == [4, 1]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(5))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 0, 1, 1]
    with Image.open(tree / "val" / "dog" / "1.jpg") as file:
        pixels = tvf.pil_to_tensor(file)
    expected = tvf.center_crop(tvf.resize(pixels, 18, v2.InterpolationMode.BILINEAR, antialias=True), 16)
    assert torch.equal(batches[1].images[0], expected.float() / 255)


def test_a_rank_without_a_row_yields_an_empty_batch(tree, folder):
    data = ready(folder(tree))
    data.trainer = trainer_at(0, 1, 2)
    last = list(data.val_dataloader())[-1]
    assert last.images.shape == (0, 3, 16, 16)
    assert (len(last), last.rows, last.index.dtype) == (0, (1, 0), torch.int64)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(40, 60), (16, 16), (9, 14), (200, 3), (4, 300)])
def test_training_images_are_torchvisions_own(shape, flip):
    image = tvf.pil_to_tensor(noise(*shape))
    theirs = v2.Compose([v2.RandomResizedCrop(16, antialias=True), v2.RandomHorizontalFlip(0.5 if flip else 0)])
    ours = TrainTransform(16, flip=flip)
    mirrored = 0
    for seed in range(30):
        torch.manual_seed(seed)
        result = ours(image)
        torch.manual_seed(seed)
        assert torch.equal(result, theirs(image.contiguous()))
        torch.manual_seed(seed)
        mirrored += not torch.equal(result, TrainTransform(16, flip=False)(image))
    assert 5 < mirrored < 25 if flip else mirrored == 0


@pytest.mark.parametrize("shape", [(37, 52), (150, 90), (18, 18)])
def test_evaluated_images_are_those_of_pil_within_rounding(shape):
    image = noise(*shape)
    theirs = transforms.Compose([transforms.Resize(18), transforms.CenterCrop(16)])(image)
    ours = eval_transform(16)(tvf.pil_to_tensor(image))
    assert (ours.int() - tvf.pil_to_tensor(theirs).int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("colour.jpg", "RGB", {}),
        ("full.jpg", "RGB", {"subsampling": 0}),
        ("late.jpg", "RGB", {"progressive": True}),
        ("untransformed.jpg", "RGB", {"keep_rgb": True}),
        ("grey.jpg", "L", {}),
        ("print.jpg", "CMYK", {}),
        ("named.jpg", "RGB", {"format": "PNG"}),
        ("few.gif", "P", {}),
    ],
)
def test_pixels_are_those_of_pil(tmp_path, name, mode, options):
    path = tmp_path / name
    noise(37, 52).convert(mode).save(path, **options)
    with Image.open(path) as file:
        expected = tvf.pil_to_tensor(file.convert("RGB"))
    pixels = Files.decode(path)
    assert torch.equal(pixels, expected)
    assert pixels.permute(1, 2, 0).is_contiguous()


def test_a_worker_has_one_thread(tree, at, monkeypatch):
    monkeypatch.setattr(Files, "decode", lambda self, path: torch.full((3, 20, 20), 51 * torch.get_num_threads()))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        images = torch.cat([batch.images for batch in at(tree, workers=1)])
    finally:
        torch.set_num_threads(threads)
    assert torch.allclose(images, torch.tensor(0.2))


@pytest.mark.parametrize(("workers", "prefetch"), [(-1, 2), (2, 0), (0, -3)])
def test_impossible_numbers_are_named(tree, folder, workers, prefetch):
    with pytest.raises(UserError, match=rf"(workers={workers}|prefetch={prefetch}) is out of range"):
        folder(tree, workers=workers, prefetch=prefetch)


def test_workers_make_as_many_batches_ahead_as_asked_for(tree, at):
    loader = at(tree, workers=1, prefetch=5)
    assert loader.torch_loader.prefetch_factor == 5


def test_grey_and_transparent_images_have_three_channels(tmp_path, folder):
    write_images(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1})
    Image.new("L", (30, 20), 100).save(tmp_path / "train" / "a" / "grey.png")
    Image.new("RGBA", (30, 20), (10, 20, 30, 40)).save(tmp_path / "train" / "b" / "clear.webp")
    batch = next(iter(ready(folder(tmp_path)).train_dataloader()))
    assert batch.images.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"no image", None])
@pytest.mark.parametrize("name", ["0.png", "1.jpg"])
def test_an_unreadable_image_is_named_in_one_sentence(tree, folder, workers, content, name):
    path = tree / "train" / "dog" / name
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    loader = ready(folder(tree, workers=workers)).train_dataloader()
    sentence = "read"
    try:
        list(loader)
    except UserError as error:  # pytest.raises would keep the loader, and so its processes, in a cycle
        sentence = str(error)
    assert sentence.startswith(f"{path} cannot be read as an image")
    assert "\n" not in sentence


def test_a_holdout_of_one_image(tree, folder):
    data = ready(folder(tree, holdout=1))
    assert (data.num_samples, data.evaluated_on) == (10, "holdout")
    assert [len(batch) for batch in data.val_dataloader()] == [1]


def test_differing_classes_are_named(tree, folder):
    (tree / "val" / "bird").mkdir()
    with pytest.raises(UserError, match=r"same class folders, but differ in bird$"):
        ready(folder(tree))


def test_a_wrong_number_of_classes_is_named(tree, folder):
    with pytest.raises(UserError, match=r"2 class folders, so num_classes=5 must be 2"):
        ready(folder(tree, num_classes=5))


@pytest.mark.parametrize(("made", "missing"), [([], "train"), (["train/a"], "val or test")])
def test_an_absent_folder_is_named(tmp_path, folder, made, missing):
    for name in made:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"has no folder {missing}"):
        ready(folder(tmp_path))


@pytest.mark.parametrize("empty", ["train/b", "val/a", "both"])
def test_folders_without_images(tmp_path, folder, empty):
    counts = {name: 0 if name == empty or empty == "both" else 1 for name in ("train/a", "train/b", "val/a", "val/b")}
    write_images(tmp_path, counts)
    data = folder(tmp_path, batch_size=1)
    if empty == "val/a":  # a class may be absent from the test set
        assert len(ready(data).test_dataloader()) == 1
    else:
        with pytest.raises(UserError, match=r"train has no images in the class folders (a, )?b:"):
            ready(data)


@pytest.mark.parametrize("damaged", [False, True])
def test_the_processes_end_with_the_loader(tree, folder, damaged):
    if damaged:
        (tree / "val" / "cat" / "0.png").write_bytes(b"")
    before = set(multiprocessing.active_children())
    loader = ready(folder(tree, workers=2)).val_dataloader()
    gc.disable()  # in a cycle they would wait for the collector, and then be killed after a timeout
    try:
        with pytest.raises(UserError) if damaged else contextlib.nullcontext():
            list(loader)
        processes = set(multiprocessing.active_children()) - before
        assert len(processes) == 2
        del loader
        assert not any(process.is_alive() for process in processes)
    finally:
        gc.enable()
