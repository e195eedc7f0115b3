"""Methods within methods on the command line: what is composed, what it is called, mistakes, and whole runs."""

import json
import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import distill
import harness
from command_line import assert_one_sentence, here, process
from distill.command import method_name
from distill.errors import UserError
from distill.run import config as settings
from distill.run import train

PAIR = ("teacher=resnet56", "student=resnet20")
HOSTS = {"kd": "KD", "dkd": "DKD", "rld": "RLD", "ctkd": "CTKD"}


def method(*words: str) -> dict:
    return harness.configure(*words, *PAIR)["distiller"]


# ---------------------------------------------------------------------- what is composed


@pytest.mark.parametrize("host", HOSTS)
def test_any_method_can_be_host_with_its_own_numbers(host):
    node = method("distiller=lskd", f"distiller@distiller.host={host}", "distiller.host.ce_weight=.3")
    assert node["host"] == {**harness.configure(f"distiller={host}", "student=resnet8")["distiller"], "ce_weight": 0.3}


def test_a_sum_begins_with_kds_term_and_takes_more():
    added = ("+distiller@distiller.terms.x=dkd", "distiller.terms.x.alpha=3")
    terms = method("distiller=sum", *added)["terms"]
    assert {name: node["_target_"].rpartition(".")[2] for name, node in terms.items()} == {"kd": "KD", "x": "DKD"}
    assert (terms["kd"]["ce_weight"], terms["kd"]["kd_weight"]) == (0, 1)
    assert (terms["x"]["ce_weight"], terms["x"]["alpha"]) == (1, 3)


def test_and_kds_term_can_be_taken_out():
    out = ("~distiller@distiller.terms.kd", "~distiller.terms.kd", "+distiller@distiller.terms.rld=rld")
    config = harness.configure("distiller=sum", *out)
    assert list(config["distiller"]["terms"]) == ["rld"]
    assert config["names"]["distiller"] == "sum+rld"


def test_what_is_nested_shrinks_with_the_recipe():
    node = method("distiller=sum", "+distiller@distiller.terms.x=lskd_ctkd", "recipe.epochs=24")
    assert node["terms"]["x"]["host"]["curriculum_epochs"] == 1


# ---------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (("lskd_kd", "resnet32x4", "resnet8x4"), {"temperature": 2, "kd_weight": 9, "ce_weight": 0.1}),
        (("lskd_kd", "resnet110", "resnet20"), {"temperature": 4, "kd_weight": 12, "ce_weight": 0.1}),
        (("lskd_dkd", "resnet32x4", "resnet8x4"), {"temperature": 2, "alpha": 9, "beta": 72, "ce_weight": 1}),
        (("lskd_dkd", "resnet56", "resnet20"), {"temperature": 3, "alpha": 18, "beta": 36, "warmup_epochs": 20}),
        (("dkd", "resnet56", "resnet20"), {"temperature": 4, "alpha": 1, "beta": 2}),
        (("lskd_mlkd", "vgg13", "vgg8"), {"temperatures": [2, 3, 5, 2, 6], "kd_weight": 6, "ce_weight": 0.1}),
        (("lskd_mlkd", "cifar_resnet50", "mobilenetv2"), {"temperatures": [2, 3, 5, 2, 6], "kd_weight": 9}),
        (("lskd_rld", "resnet56", "resnet20"), {"temperature": 2, "confidence_temperature": 2, "alpha": 9, "beta": 72}),
        (("lskd_ctkd", "vgg13", "vgg8"), {"lowest_temperature": 2, "kd_weight": 9, "ce_weight": 0.1}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_ready_made_composition_has_the_published_numbers_of_its_pair(words, numbers):
    name, teacher, student = words
    node = harness.configure(f"distiller={name}", f"teacher={teacher}", f"student={student}")["distiller"]
    assert numbers.items() <= node.get("host", node).items()


def test_a_longer_experiment_of_the_host_is_one_of_the_composition_too():
    config = harness.configure("experiment=mlkd_480", "distiller=lskd_mlkd", "teacher=vgg13", "student=vgg8")
    assert (config["names"]["distiller"], config["recipe"]["epochs"], config["recipe"]["lr"]) == (
        "lskd_mlkd",
        480,
        0.01,
    )
    assert config["distiller"]["raw_terms"] == ["ce", "class", "batch"]


@pytest.mark.parametrize("name", ["lskd_kd", "lskd_dkd"])
def test_a_pairs_weight_multiplies_alpha_and_beta_alike_and_stands_in_its_comment(name):
    for path in sorted((harness.CONF / "pair" / name).glob("*.yaml")):
        host = harness.yaml(path)["distiller"]["host"]
        text = path.read_text().replace("\n# ", " ")
        log = re.search(r"`(k|dk)d,\w+,\w+,([\d.]+),([\d.]+)(?:,([\d.]+))?`", text)
        log = log or re.search(r"(temperature) ([\d.]+) and weight ([\d]+)()", text)  # of transformers
        if log is None and name == "lskd_dkd":  # ImageNet: the rule over the host's own numbers
            assert host["beta"] == 9 * harness.yaml(harness.CONF / "pair/dkd" / path.name)["distiller"]["beta"], path
            continue
        assert log is not None, path
        temperature, weight, beta = (float(found or 0) for found in log.groups()[1:])
        default = harness.configure(f"distiller={name}", "student=resnet8")["distiller"]["host"]
        host = default | host
        found = (host["alpha"], host["beta"]) if name == "lskd_dkd" else (host["kd_weight"], 0)
        assert (host["temperature"], *found) == (temperature, weight, weight * beta), path


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("inner", "name"),
    [
        ({}, "lskd"),
        ({"host": "dkd"}, "lskd+dkd"),
        ({"terms.y": "kd", "terms.x": "crd"}, "crd+kd"),
        ({"terms.x": "lskd", "terms.x.host": "rld", "terms.y": "at"}, "at+lskd+rld"),
        ({"host": "sum", "host.terms.b": "at", "host.terms.a": "kd"}, "lskd+at+kd"),
    ],
)
def test_a_composition_is_called_by_what_it_is_made_of(inner, name):
    choices = {f"distiller@distiller.{place}": choice for place, choice in inner.items()}
    assert method_name({"data": "digits", "distiller": "lskd", **choices, "pair": "lskd/x"}) == name


def test_the_name_is_that_of_the_run_and_of_its_folder():
    words = ["distiller=lskd", "distiller@distiller.host=dkd", "data=digits", "student=resnet8"]
    assert harness.configure(*words)["names"]["distiller"] == "lskd+dkd"
    with initialize_config_dir(str(harness.CONF), version_base="1.3"):
        cfg = compose("train", overrides=words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    assert cfg.hydra.run.dir.startswith("outputs/digits/resnet32x4-resnet8/lskd+dkd/")


# ---------------------------------------------------------------------- mistakes

COMPOSED = {
    "a misspelt key of the host": (
        ("distiller=lskd", "distiller.host.temprature=3"),
        "There is no key distiller.host.temprature: distiller.host has temperature, ce_weight, kd_weight.",
    ),
    "a host for a method that takes none": (
        ("distiller=kd", "distiller@distiller.host=dkd"),
        "Could not override 'distiller@distiller.host'. ",
    ),
}


@pytest.mark.parametrize("case", COMPOSED)
def test_words_that_do_not_compose(case, monkeypatch, capsys):
    words, expected = COMPOSED[case]
    answer = here(monkeypatch, capsys, *words)
    assert_one_sentence(answer)
    assert answer.error.startswith(expected)


@pytest.mark.parametrize("word", ["distiller@distiller.host=dk", "+distiller@distiller.terms.x=dk"])
def test_an_unknown_part_is_answered_with_the_valid_names(word, monkeypatch, capsys):
    answer = here(monkeypatch, capsys, f"distiller={'sum' if 'terms' in word else 'lskd'}", word)
    assert_one_sentence(answer)
    said = re.fullmatch(r"distiller=dk is unknown: choose one of (dkd, .*)\.\n", answer.error)
    assert said is not None
    assert set(said[1].split(", ")) == set(harness.METHODS)


KEYS = {
    ("lskd", "+distiller.temprature=3"): "There is no key distiller.temprature: LSKD takes host, raw_terms.",
    ("lskd", "+distiller.host.temprature=3"): "There is no key distiller.host.temprature: KD takes temperature, ",
    ("lskd", "~distiller.host.temperature"): "distiller.host lacks temperature: KD needs temperature, ce_weight, ",
    ("lskd", "distiller.host.kd_weight=much"): "distiller.host.kd_weight=much does not fit: KD takes a number.",
    ("lskd", "~distiller.host"): "distiller lacks host: LSKD needs host, raw_terms.",
    ("lskd", "distiller.host=dkd"): "distiller.host=dkd is no method: choose one with distiller@distiller.host=NAME.",
    ("lskd", "distiller.host._target_=no.Method"): "distiller.host._target_=no.Method cannot be imported: ",
    ("lskd", "distiller.host={_target_: builtins.dict}"): "distiller.host._target_=builtins.dict is no distill.dis",
    ("lskd", "distiller.raw_terms=ce"): "distiller.raw_terms=ce does not fit: LSKD takes a list, of a text each.",
    ("lskd", "distiller.raw_terms=[ce,kl]"): "raw_terms=['ce', 'kl']: the host has no term kl, but ce, kd.",
    ("sum", "+distiller.terms.x=dkd"): "distiller.terms.x=dkd is no method: choose one with"
    " +distiller@distiller.terms.x=NAME, or take it out with ~distiller.terms.x.",
    ("sum", "distiller.terms=kd"): "distiller.terms.kd=kd is no method: choose one with +distiller@distiller.terms.",
    ("sum", "~distiller@distiller.terms.kd"): "distiller.terms.kd={'ce_weight': 0.0, 'kd_weight': 1.0} is no method: ",
    ("sum", "~distiller.terms.kd"): "a sum needs at least one method: add it with ",
    ("sum", "+distiller.terms.kd.alpha=1"): "There is no key distiller.terms.kd.alpha: KD takes ",
}


@pytest.mark.parametrize(("name", "word"), KEYS)
def test_keys_and_values_that_do_not_fit(name, word, tmp_path):
    config = harness.configure(f"distiller={name}", word, *harness.SMALL, *harness.RANDOM_TEACHER)
    with pytest.raises(UserError) as error:
        train.carry_out(config, tmp_path)
    assert str(error.value).startswith(KEYS[name, word])
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_part_without_its_teacher(tmp_path):
    config = harness.configure("distiller=sum", "teacher=none", *harness.SMALL)
    with pytest.raises(UserError, match=r"^distiller Sum needs a teacher: choose one with teacher=NAME"):
        train.carry_out(config, tmp_path)


# ---------------------------------------------------------------------- whole runs

STATEFUL = (
    "+distiller@distiller.terms.x=mcld",
    "distiller.terms.x.queue_length=600",
    "+distiller@distiller.terms.y=ctkd",
)


def test_a_sum_with_state_trains_resumes_and_is_evaluated(tmp_path):
    words = ("distiller=sum", *STATEFUL, *harness.SMALL, *harness.RANDOM_TEACHER, "checkpoint.steps=1")
    config = harness.configure(*words)
    harness.execute(config, tmp_path / "whole")
    harness.execute(config, tmp_path / "killed", kill_at=7)
    harness.execute(config, tmp_path / "killed")
    one, other = (harness.state(tmp_path / run) for run in ("whole", "killed"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert one["distiller.parts.x.count"] == 600
    assert one["distiller.parts.y.theta"] != 1
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert result["names"]["distiller"] == "ctkd+kd+mcld"
    assert result["parameters"]["extra"] == 1
    assert result["parameters"]["deployed"] == result["parameters"]["student"]
    lines = (tmp_path / "whole/metrics.csv").read_text().splitlines()
    trained = [column[6:] for column in lines[0].split(",") if column.startswith("train/")]
    assert sorted(trained[2:-1]) == ["kd.kd", "x.category", "x.instance", "x.sample", "y.kd"]
    assert [*trained[:2], trained[-1]] == ["loss", "ce", "top1"]
    row = dict(zip(*(line.split(",") for line in lines[::2]), strict=True))  # of the last epoch
    temperature = 1 + 20 * one["distiller.parts.y.theta"].sigmoid().item()
    assert float(row["method/y.temperature"]) == pytest.approx(temperature, rel=1e-6)
    assert float(row["method/y.reversal"]) == 1
    for file in ("", "last.ckpt"):
        scores = harness.evaluate(f"source={tmp_path / 'whole' / file}")
        assert scores["top1"] == pytest.approx(result["last"]["top1"], abs=1e-4)


def test_what_a_part_deploys_is_saved_and_loaded(tmp_path):
    config = harness.configure("distiller=sum", *harness.SMALL, *harness.RANDOM_TEACHER, "recipe.epochs=1")
    config["distiller"]["terms"]["x"] = {"_target_": "methods.Borrows", "weight": 1.0}
    harness.execute(config, tmp_path)
    assert type(distill.load(tmp_path)).__name__ == "Borrowed"
    result = json.loads((tmp_path / "result.json").read_text())
    scores = harness.evaluate(f"source={tmp_path}")
    assert scores["top1"] == pytest.approx(result["last"]["top1"], abs=1e-4)
    assert harness.evaluate(f"source={tmp_path / 'last.ckpt'}") == pytest.approx(scores, abs=1e-4)


def test_a_run_is_resumed_from_its_saved_configuration(tmp_path):
    words = ("distiller=lskd", "distiller@distiller.host=dkd", *harness.SMALL, *harness.RANDOM_TEACHER)
    config = harness.configure(*words)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert settings.resumed(OmegaConf.create({"resume": str(tmp_path)}), [f"resume={tmp_path}"]) == config


@pytest.mark.slow
def test_a_sweep_over_hosts(tmp_path):
    sweep = ("distiller=lskd", "distiller@distiller.host=kd,rld", "recipe.epochs=1", f"hydra.sweep.dir={tmp_path}")
    answer = process("-m", *harness.SMALL, *harness.RANDOM_TEACHER, *sweep)
    assert answer.code == 0, answer.error
    found = {path.parent.name: json.loads(path.read_text())["names"] for path in sorted(tmp_path.glob("*/result.json"))}
    assert [names["distiller"] for names in found.values()] == ["lskd+kd", "lskd+rld"]
    assert all(f"_distiller.host-{host}_" in name for name, host in zip(found, ("kd", "rld"), strict=True))
