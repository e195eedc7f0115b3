"""A user's mistakes: each ends before the first step, in one sentence that says what would be right."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import harness
from command_line import assert_one_sentence, here, process
from distill.distillers import Distiller
from distill.errors import UserError
from distill.models.resnet import CifarResNet
from distill.run import config as settings
from distill.run import train
from image_files import accept_stl10, write_imagenet, write_stl10, write_tiny_imagenet

BASE = ("data=digits", "data.size=16", "recipe.batch_size=256", "recipe.epochs=2", "trainer.precision=32-true")
ALONE = ("distiller=none", "teacher=none", "student=resnet8", "student.widths=[4,4,8,8]")
RUN = (*BASE, *ALONE)
UNTAUGHT = ("student=resnet8", "student.widths=[4,4,8,8]", "teacher=resnet8", "teacher.widths=[4,4,8,8]")


def mistake(folder: Path, *overrides: str) -> str:
    """The sentence that a run ends with, before it has made a step."""
    with pytest.raises(UserError) as error:
        train.carry_out(harness.configure(*overrides), folder)
    assert not list(folder.glob("*.ckpt"))
    text = str(error.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------------- words that Hydra refuses

COMPOSED = {
    "a misspelt key": (
        ("distiller=kd", "distiller.temprature=4"),
        "There is no key distiller.temprature: distiller has temperature, ce_weight, kd_weight.",
    ),
    "a misspelt key further down": (
        ("recipe.schedule.gama=.1",),
        "There is no key recipe.schedule.gama: recipe.schedule has gamma, milestones, warmup_epochs.",
    ),
    "a misspelt group": (
        ("distiler=kd",),
        "There is no key distiler: the configuration has distiller, seed, score_test, resume, checkpoint, names, data,"
        " recipe, teacher, student, optimizer, trainer, logger, sweep.",
    ),
    "a key of another choice": (
        ("distiller=kd", "distiller.queue_length=9"),
        "There is no key distiller.queue_length: distiller has temperature, ce_weight, kd_weight.",
    ),
    "a key of nothing": (
        ("teacher=none", "distiller=none", "teacher.weights=here.pth"),
        "teacher.weights cannot be set: teacher is a single value, or none.",
    ),
    "no value": (
        ("student.depth",),
        "student.depth cannot be read (missing EQUAL at '<EOF>'): write key=value, and quote special characters:"
        " 'key=\"a=b\"'.",
    ),
    "null for a group": (
        ("teacher=null",),
        "A group takes a name, not null: to have no teacher, write teacher=none.",
    ),
    "several methods at once": (
        ("distiller=[kd,mcld]",),
        "data, teacher, student and distiller take one name, no list.",
    ),
    "a sweep without -m": (
        ("seed=1,2",),
        "seed=1,2 has several values: add -m for one run of each, or write [a,b].",
    ),
    "an addition that is there": (
        ("+seed=1",),
        "seed has a value already: leave out the + to change it.",
    ),
}


@pytest.mark.parametrize("case", COMPOSED)
def test_words_that_do_not_compose(case, monkeypatch, capsys):
    overrides, expected = COMPOSED[case]
    answer = here(monkeypatch, capsys, *overrides)
    assert_one_sentence(answer)
    assert answer.error == expected + "\n"


def test_a_folder_of_ones_own_that_is_not_there(monkeypatch, capsys, tmp_path):
    answer = here(monkeypatch, capsys, "-cd", f"{tmp_path}/absent")
    assert_one_sentence(answer)
    assert f"{tmp_path}/absent' not found" in answer.error


def test_a_sweep_is_refused_as_a_whole_when_one_of_its_jobs_does_not_compose(tmp_path):
    answer = process("-m", "distiller=none,nonsense", f"hydra.sweep.dir={tmp_path}/sweep")
    assert_one_sentence(answer)
    assert "distiller=nonsense is unknown: choose one of " in answer.error
    assert not list(tmp_path.glob("sweep/0*"))


# ---------------------------------------------------------------------- keys and values

KEYS = {
    "+distiller.temprature=4": "There is no key distiller.temprature: KD takes temperature, ce_weight, kd_weight.",
    "~distiller.temperature": "distiller lacks temperature: KD needs temperature, ce_weight, kd_weight.",
    "distiller.temperature=hot": "distiller.temperature=hot does not fit: KD takes a number.",
    "+distiler.temperature=4": "There is no key distiler: the configuration has distiller, data, recipe,",
    "+checkpoint.minuts=1": "There is no key checkpoint.minuts: checkpoint has minutes, epochs, steps.",
    "+student.deep=8": "There is no key student.deep: CifarResNet takes depth, widths, num_classes.",
    "student.widths=8": "student.widths=8 does not fit: CifarResNet takes a list, of a whole number each.",
    "+data.colour=1": "There is no key data.colour: Digits takes ",
    "+optimizer.momentun=.9": "There is no key optimizer.momentun: SGD takes momentum, ",
    "optimizer.momentum=-1": "The optimizer refuses its numbers: Invalid momentum value: -1.",
    "+trainer.max_epochs=1": "trainer.max_epochs is not read: say recipe.epochs instead.",
    "+trainer.callbacks=[]": "There is no key trainer.callbacks: Trainer takes accelerator, strategy, devices, ",
    "+trainer.max_time_=1": "There is no key trainer.max_time_: Trainer takes max_time, ",
    "trainer.benchmark=maybe": "trainer.benchmark=maybe does not fit: Trainer takes true or false or null.",
    "trainer.strategy=fsdp": "trainer.strategy=fsdp is none of auto, ddp, ddp_find_unused_parameters_true.",
    "trainer.log_every_n_steps=0": "trainer.log_every_n_steps=0 must be at least 1.",
    "trainer.accelerator=tpu": "trainer.accelerator=tpu is unknown: choose one of auto, cpu, gpu, cuda, mps.",
    "trainer.devices=0": "trainer.devices=0 must be auto or a whole number of at least 1.",
    "trainer.precision=foo": "trainer.precision=foo is unknown: choose one of auto, bf16-mixed, 16-mixed, 32-true.",
    "trainer.num_nodes=2": "trainer.num_nodes needs a launcher that starts one process per device, such as torchrun",
    "+trainer.val_check_interval=2.5": "The trainer refuses its settings: You have passed invalid value 2.5",
    "recipe.epochs=0": "recipe.epochs=0 must be a whole number of at least 1.",
    "recipe.epochs=1.5": "recipe.epochs=1.5 must be a whole number of at least 1.",
    "recipe.lr=-1": "recipe.lr=-1 must be a number of at least 0.",
    "recipe.lr=fast": "recipe.lr=fast must be a number of at least 0.",
    "recipe.accumulate=3": "recipe.batch_size=256 does not divide into recipe.accumulate=3 micro-batches: choose a",
    "+recipe.schedule.step=1": "There is no key recipe.schedule.step: MultiStep takes milestones, gamma, warm",
    "~recipe.accumulate": "recipe lacks accumulate: it needs epochs, batch_size, accumulate, lr, weight_decay,",
    "seed=one": "seed=one must be a whole number.",
    "data.holdout=5000": "holdout=5000 is out of range: of 1438 training images 0 to 1428 can be held out",
}


@pytest.mark.parametrize("override", KEYS)
def test_a_key_or_value_that_does_not_fit(override, tmp_path):
    method = ("distiller=kd", *UNTAUGHT, "teacher.weights=null", "teacher.allow_chance=true")
    assert mistake(tmp_path, *BASE, *method, override).startswith(KEYS[override])


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("normalize", "l2, center_l2, none"),
        ("queue_init", "empty, gaussian"),
        ("target_mask", "none, same_class, target_logit"),
        ("category_reduction", "valid, all"),
        ("category_denominator", "printed, supcon, infonce"),
    ],
)
def test_an_option_of_mcld_that_does_not_exist(key, values, tmp_path):
    text = mistake(tmp_path, *BASE, "distiller=mcld", *UNTAUGHT, "teacher.weights=null", f"distiller.{key}=nonsense")
    assert "nonsense" in text
    assert all(re.search(rf"\b{value}\b", text) for value in (key, *values.split(", ")))


def test_every_weight_of_mcld_switched_off(tmp_path):
    off = [f"distiller.{term}_weight=0" for term in ("ce", "instance", "sample", "category")]
    text = mistake(tmp_path, *BASE, "distiller=mcld", *UNTAUGHT, "teacher.weights=null", *off)
    assert text.startswith("MCLD has nothing to learn from")


def test_a_recipe_that_does_not_exist():
    with pytest.raises(
        UserError, match=r"^recipe=digit is unknown: choose one of digits, cifar100, cifar100_short, folder"
    ):
        harness.configure("data=digits", "recipe=digit")


def test_an_interpolation_of_nothing():
    with pytest.raises(UserError, match=r"^optimizer.lr cannot be resolved: Interpolation key 'rate' not found\.$"):
        harness.configure("optimizer.lr=${rate}")


# ---------------------------------------------------------------------- networks


def test_timm_wants_a_name():
    with pytest.raises(UserError, match=r"^student\.name must be given: write student\.name=VALUE\.$"):
        harness.configure("student=timm")


def test_timm_does_not_know_every_name(tmp_path):
    text = mistake(tmp_path, *BASE, "distiller=none", "teacher=none", "student=timm", "student.name=resnet19")
    assert re.match(r"timm has no model called 'resnet19'; did you mean resnet18, ", text)


def test_a_class_that_does_not_exist(tmp_path):
    text = mistake(tmp_path, *RUN, "distiller._target_=theirs.Method")
    assert text.startswith("distiller._target_=theirs.Method cannot be imported: ")


def test_a_class_of_another_kind(tmp_path):
    text = mistake(tmp_path, *RUN, "~student.depth", "~student.widths", "student._target_=builtins.dict")
    assert text == "student._target_=builtins.dict is no torch.nn.Module."


def test_a_method_without_its_teacher(tmp_path):
    text = mistake(tmp_path, *RUN, "distiller=mcld")
    assert text == "distiller MCLD needs a teacher: choose one with teacher=NAME, or distiller=none."


# ---------------------------------------------------------------------- weights


def test_a_teacher_without_weights_says_how_to_get_them(tmp_path):
    text = mistake(tmp_path, *BASE, "teacher=resnet56", "student=resnet8")
    assert text.startswith("teacher=resnet56 has no weights at weights/digits/resnet56.safetensors: ")
    assert "`python scripts/teachers.py fetch resnet56`" in text
    assert "`python src/train.py data=digits distiller=none teacher=none student=resnet56`" in text


def test_a_teacher_at_chance(tmp_path):
    text = mistake(tmp_path, *BASE, "distiller=kd", *UNTAUGHT, "teacher.weights=null")
    assert re.match(r"teacher=resnet8 is at chance: \d+\.\d\d % top-1, where naming the commonest class gives", text)
    assert text.endswith("Give it weights with teacher.weights=FILE, or say teacher.allow_chance=true.")


def test_a_teacher_at_chance_may_be_wanted(tmp_path):
    words = (*BASE, "distiller=kd", *UNTAUGHT, "teacher.weights=null", "teacher.allow_chance=true", "recipe.epochs=1")
    train.carry_out(harness.configure(*words), tmp_path)
    assert (tmp_path / "result.json").exists()


def saved(folder: Path, *, classes: int = 10, widths: tuple[int, ...] = (4, 4, 8, 8), drop: str = "") -> Path:
    """A weights file of a small ResNet."""
    state = CifarResNet(depth=8, widths=widths, num_classes=classes).state_dict()
    torch.save({key: value for key, value in state.items() if key != drop}, folder / "weights.pth")
    return folder / "weights.pth"


WEIGHTS = {
    "other classes": ({"classes": 7}, r"their classifier has 7 classes, the data set has 10\."),
    "other widths": (
        {"widths": (5, 4, 8, 8)},
        r".*other shapes: conv1.weight is \(5, 3, 3, 3\), expected \(4, .*",
    ),
    "a missing key": ({"drop": "conv1.weight"}, r"missing conv1\.weight\. Is it the right network\?"),
}


@pytest.mark.parametrize("part", ["teacher", "student"])
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit(case, part, tmp_path):
    flaw, expected = WEIGHTS[case]
    file = saved(tmp_path, **flaw)
    text = mistake(tmp_path, *BASE, "distiller=kd", *UNTAUGHT, "teacher.weights=null", f"{part}.weights={file}")
    assert re.fullmatch(rf"The {part} weights in {re.escape(str(file))} do not fit: {expected}", text)


def test_a_file_that_holds_no_weights(tmp_path):
    (tmp_path / "notes.pth").write_text("no weights")
    text = mistake(tmp_path, *RUN, f"student.weights={tmp_path}/notes.pth")
    assert text == f"{tmp_path}/notes.pth is no weights file, or a damaged one."


# ---------------------------------------------------------------------- data


def test_a_folder_of_images_wants_to_be_named():
    with pytest.raises(UserError, match=r"^data\.root must be given: write data\.root=VALUE\.$"):
        harness.configure("data=folder")


FOLDERS = {
    "absent": ((), r"{root} has no folder train: it must hold train/<class>/ and val/<class>/ of images"),
    "incomplete": (("train/a",), r"{root} has no folder val or test: it must hold train/<class>/ and val/<class>/.*"),
    "different": (("train/a", "train/b", "val/a"), r".* must hold the same class folders, but differ in b"),
    "empty": (("train/a", "train/b", "val/a", "val/b"), r"{root}/train has no images in the class folders a, b: .*"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_images_that_is_not_one(case, tmp_path):
    made, expected = FOLDERS[case]
    root = tmp_path / "images"
    for name in made:
        (root / name).mkdir(parents=True)
    text = mistake(tmp_path / "run", *RUN, "data=folder", f"data.root={root}", "recipe=digits")
    assert re.fullmatch(expected.replace("{root}", re.escape(str(root))), text)


def test_cifar100_that_is_not_there(tmp_path):
    words = ("data=cifar100", "data.size=32", "data.download=false", f"data.root={tmp_path}/empty")
    text = mistake(tmp_path, *RUN, *words)
    assert text.startswith(
        f"{tmp_path}/empty/cifar-100-python lacks train, test, meta: set data.download=true or unpack"
    )


def test_tiny_imagenet_with_a_damaged_image(tmp_path):
    folder = write_tiny_imagenet(tmp_path)
    os.truncate(folder / "val/images/val_2.JPEG", 300)
    words = ("data=tiny_imagenet", f"data.root={tmp_path}", "data.complete=false", "data.num_classes=3")
    text = mistake(tmp_path / "run", *RUN, *words)
    assert text.startswith(f"{folder}/val/images/val_2.JPEG cannot be read as an image (")
    assert text.endswith(": replace or remove it")


def test_tiny_imagenet_whose_answers_cannot_be_kept(tmp_path):
    write_tiny_imagenet(tmp_path)
    words = ("data=tiny_imagenet", f"data.root={tmp_path}", "data.complete=false", "data.num_classes=3")
    kept = (*UNTAUGHT, "teacher.weights=null", "teacher.allow_chance=true", "teacher.keep=memory", "distiller=kd")
    text = mistake(tmp_path / "run", *BASE, *words, *kept, "data.rotation=20")
    assert text == (
        "teacher.keep=memory needs a finite set of augmented views, but those of data=tiny_imagenet are without number:"
        " set teacher.keep=off."
    )


def test_stl10_with_a_truncated_file(tmp_path, monkeypatch):
    write_stl10(tmp_path)
    accept_stl10(monkeypatch, tmp_path / "stl10_binary")
    path = tmp_path / "stl10_binary/train_X.bin"
    os.truncate(path, 96)
    text = mistake(tmp_path / "run", *RUN, "data=stl10", f"data.root={tmp_path}")
    assert text.startswith(f"{path} is truncated (it has 96 bytes instead of 304,128): delete it and unpack http")


def test_imagenet_without_a_class_folder(tmp_path):
    write_imagenet(tmp_path / "data")
    text = mistake(tmp_path / "run", *RUN, "data=imagenet", f"data.root={tmp_path}/data")
    assert text.startswith(f"{tmp_path}/data/train lacks the class folders n01484850, n01491361, ")
    assert text.endswith(" or say data.complete=false to use a part of the data set")


def test_imagenet_that_is_not_there(tmp_path):
    text = mistake(tmp_path / "run", *RUN, "data=imagenet", f"data.root={tmp_path}/data")
    assert text.startswith(
        f"{tmp_path}/data has no folder train: the licence forbids a download by us, so get ILSVRC2012"
    )


# ---------------------------------------------------------------------- resume


def resume(folder: Path, *overrides: str) -> settings.Config:
    """What `resume=FOLDER ...` goes on with."""
    from omegaconf import OmegaConf

    return settings.resumed(OmegaConf.create({"resume": str(folder)}), [f"resume={folder}", *overrides])


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"^resume=.* is no run: there is no .*config\.yaml\.$"):
        resume(tmp_path)


def test_a_setting_that_cannot_change(tmp_path):
    harness.execute(harness.configure(*RUN, "recipe.epochs=1"), tmp_path)
    with pytest.raises(UserError, match=r"distiller=kd, recipe\.epochs=9 cannot change in it \(only trainer\.,"):
        resume(tmp_path, "distiller=kd", "recipe.epochs=9", "trainer.devices=1")
    assert resume(tmp_path, "trainer.log_every_n_steps=7")["trainer"]["log_every_n_steps"] == 7


# ---------------------------------------------------------------------- evaluation


def test_eval_wants_to_know_what(tmp_path):
    answer = process(f"hydra.run.dir={tmp_path}", script="eval")
    assert_one_sentence(answer)
    assert answer.error.startswith("Say what to evaluate: source=RUN_FOLDER (or one of its files), or student=NAME")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("student=resnet8",), "student.weights=FILE is missing: a network with random weights has no scores"),
        (("source=absent",), "source=absent does not exist."),
        (("student=resnet8", "source=absent"), "Say what to evaluate: "),
        (("student=resnet8", "student.weights=absent.pth"), "absent.pth does not exist: give the path of a weights"),
    ],
)
def test_eval_of_nothing(words, expected):
    with pytest.raises(UserError) as error:
        harness.evaluate("data=digits", *words)
    assert str(error.value).startswith(expected)


# ---------------------------------------------------------------------- a loss that is not finite


class Spoils(Distiller):
    """A term that is not a number from the second epoch on."""

    needs_teacher = False

    def __init__(self, spec) -> None:
        super().__init__()

    def forward(self, step) -> dict[str, Tensor]:
        loss = step.student.logits.square().mean()
        return {"ce": loss, "odd": loss * (torch.nan if step.epoch > 1 else 0.0)}


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.distillers.none.NoDistillation", Spoils)
    config = harness.configure(*RUN, "~distiller.ce_weight", "checkpoint.steps=1")
    with pytest.raises(
        UserError, match=r"^The loss is not finite: odd in epoch 2\. Checkpoints from before are"
    ) as error:
        train.carry_out(config, tmp_path)
    assert "\n" not in str(error.value)
    left = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert left["global_step"] == 6  # the whole first epoch
    assert all(value.isfinite().all() for value in left["state_dict"].values())
    assert not (tmp_path / "result.json").exists()


def test_a_rate_that_is_too_high(tmp_path):
    """From the shell: the exit code, and no traceback of Lightning's or Hydra's either."""
    answer = process(*RUN, "recipe.lr=1e30", f"hydra.run.dir={tmp_path}")
    assert answer.code == 1
    assert "Traceback" not in answer.out + answer.error
    last = answer.error.splitlines()[-1]
    assert last.startswith("The loss is not finite: ce in epoch 1.")
    assert not list(tmp_path.glob("*.ckpt"))
