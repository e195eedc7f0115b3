"""Every method of conf/distiller, on networks small enough to be quick: what the contract asks of all."""

import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import nn

import harness
from distill.build import build_distiller
from distill.distillers import Distiller
from distill.models.network import Network
from distill.types import Batch, Output, Spec, Step

CONF = Path(__file__).parents[2] / "conf"
METHODS = sorted(path.stem for path in (CONF / "distiller").glob("*.yaml"))
PAIRS = sorted((CONF / "pair").glob("*/*.yaml"), key=str)
CLASSES, SAMPLES, ROWS, SIZE = 7, 40, 8, 16


def load(path):
    """A file's values; warm-ups as for a recipe of full length, so that no resolver has to be registered."""
    text = re.sub(r"\$\{scaled:([^}]*)\}", r"\1", path.read_text())
    return OmegaConf.to_container(OmegaConf.create(text), resolve=True)


@cache
def node_of(name):
    """A method as the command line composes it for a pair without numbers of its own: methods may hold methods."""
    return harness.configure(f"distiller={name}", "teacher=resnet8", "student=resnet8")["distiller"]


def numbers(node):
    return {key for key in node if not key.startswith("_")}


def weight_of_the_task(node):
    """In a method, and in the methods within it."""
    inner = (value for value in node.values() if isinstance(value, dict))
    return node.get("ce_weight", 0) + sum(weight_of_the_task(value) for value in inner)


class Small(Network):
    """Three stages of one convolution each, shaped as the CIFAR networks' are."""

    def __init__(self, width):
        super().__init__()
        widths = (width, width, 2 * width, 4 * width)
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        pairs = zip(widths, widths[1:], (1, 2, 2), strict=False)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=s, padding=1, bias=False) for a, b, s in pairs)
        self.batch_norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(widths[-1], CLASSES)

    @property
    def classifier(self):
        return self.head

    @property
    def norms(self):
        return tuple(self.batch_norms)

    def answer(self, x):
        stages, preacts = [self.stem(x).relu()], []
        for convolution, norm in zip(self.convolutions, self.batch_norms, strict=True):
            preacts.append(norm(convolution(stages[-1])))
            stages.append(preacts[-1].relu())
        pooled = stages[-1].mean(dim=(2, 3))
        return Output(self.classify(pooled), tuple(stages), tuple(preacts), stages[-1], pooled)


def make(name):
    """A method with its student, its teacher (None where it needs none) and one batch."""
    torch.manual_seed(0)
    node = node_of(name)
    student = Small(4)
    teacher = Small(8).eval().requires_grad_(False) if get_class(node["_target_"]).needs_teacher else None
    labels = torch.arange(SAMPLES) % CLASSES
    shapes = None if teacher is None else teacher.shapes(SIZE)
    method = build_distiller(node, Spec(student.shapes(SIZE), shapes, CLASSES, SAMPLES, labels, ROWS), seed=0)
    method.prepare(student, teacher)
    index = torch.tensor([0, 1, 2, 7, 3, 9, 16, 5])  # classes 0 and 2 meet again, others are alone
    images, strong = torch.rand(2, ROWS, 3, SIZE, SIZE).unbind()
    view = torch.zeros(ROWS, 3, dtype=torch.int64)
    batch = Batch(images, labels[index], index, view=view, strong=strong if method.views == 2 else None)
    return method, student, teacher, batch


def step_of(method, student, teacher, batch):
    return Step(batch, *method.observe(student, teacher, batch), epoch=1, step=0)


@pytest.mark.parametrize("name", METHODS)
def test_the_yaml_gives_exactly_the_numbers_that_the_class_asks_for(name):
    path = CONF / "distiller" / f"{name}.yaml"
    node = node_of(name)
    target = get_class(node["_target_"])
    assert issubclass(target, Distiller)
    spec, *parameters = inspect.signature(target).parameters.values()
    assert spec.name == "spec"
    assert numbers(node) == {p.name for p in parameters}
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    assert path.read_text().startswith("# "), "a comment names the paper"


@pytest.mark.parametrize("name", METHODS)
def test_terms_are_finite_and_their_sum_teaches_the_student_alone(name):
    method, student, teacher, batch = make(name)
    for _ in range(2):  # once with fresh state, once with what `update` wrote
        step = step_of(method, student, teacher, batch)
        terms = method(step)
        assert terms
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        student.zero_grad()
        sum(terms.values()).backward()
        assert student.stem.weight.grad.isfinite().all()
        assert student.stem.weight.grad.abs().sum() > 0
        assert teacher is None or all(p.grad is None for p in teacher.parameters())
        method.update(step)


@pytest.mark.parametrize("name", METHODS)
def test_the_task_term_is_called_ce(name):
    method, student, teacher, batch = make(name)
    weight = weight_of_the_task(node_of(name))
    step = step_of(method, student, teacher, batch)
    term = method(step).get("ce", torch.zeros(()))
    if method.views == 1:  # with two views the task may be learnt from both
        expected = weight * nn.functional.cross_entropy(step.student.logits, batch.labels)
        torch.testing.assert_close(term, expected, rtol=1e-5, atol=1e-6)
    else:
        assert (term > 0) == (weight > 0)


def state(method):
    """Buffers of the method itself; running statistics of its BatchNorms move in `forward`, as everywhere."""
    norms = {id(b) for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for b in m.buffers()}
    return {key: buffer.clone() for key, buffer in method.named_buffers() if id(buffer) not in norms}


@pytest.mark.parametrize("name", METHODS)
def test_forward_writes_no_state_and_update_leaves_the_terms_as_they_were(name):
    method, student, teacher, batch = make(name)
    for _ in range(2):
        step = step_of(method, student, teacher, batch)
        before = state(method)
        terms = method(step)
        after = state(method)
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        values = {key: term.item() for key, term in terms.items()}
        sum(terms.values()).backward()
        method.update(step)
        assert {key: term.item() for key, term in terms.items()} == values


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_pairs_file_changes_known_numbers_of_a_known_method_only(path):
    def known(values, node):
        return all(key in node and (not isinstance(v, dict) or known(v, node[key])) for key, v in values.items())

    assert path.read_text().startswith("# @package _global_\n#")
    values = load(path)
    assert known(values.pop("distiller"), node_of(path.parent.name))
    assert known(values, {"recipe": harness.yaml(CONF / "recipe/cifar100.yaml")})


def test_the_second_versions_experiment_sets_known_options_of_mcld():
    values = load(CONF / "experiment" / "mcld_v2.yaml")
    method = load(CONF / "distiller" / "mcld.yaml")
    assert {"override /distiller": "mcld"} in values["defaults"]
    assert values["distiller"].keys() <= numbers(method)
    build = load(CONF / "distiller" / "mcld.yaml") | values["distiller"]
    labels = torch.zeros(SAMPLES, dtype=torch.int64)
    shapes = Small(4).shapes(SIZE)
    method = build_distiller(build, Spec(shapes, shapes, CLASSES, SAMPLES, labels, ROWS), seed=0)
    assert (method.target_mask, method.category_warmup_epochs) == ("same_class", 20)
