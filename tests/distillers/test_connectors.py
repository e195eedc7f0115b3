"""What methods on features share, and what holds for the losses of all of them."""

import re

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_class
from omegaconf import OmegaConf

import harness
import small_pairs
from distill.build import build_distiller
from distill.distillers import Distiller
from distill.distillers.at import at_loss
from distill.distillers.composite import Composite
from distill.distillers.connectors import at_one_size, paired, require, shrink, stage_pairs, unit, would_work
from distill.distillers.fitnet import fitnet_loss
from distill.distillers.nst import nst_loss
from distill.distillers.pkt import pkt_loss
from distill.distillers.rkd import rkd_loss
from distill.distillers.sp import sp_loss
from distill.distillers.vid import vid_loss
from distill.errors import UserError
from distill.types import Output, Shapes, Spec

MAPS = {
    "at": lambda s, t: at_loss(s, t, power=2.0),
    "fitnet": fitnet_loss,
    "nst": nst_loss,
    "sp": sp_loss,
    "vid": lambda s, t: vid_loss(s, t, torch.ones(s.shape[1])),
}
POOLED = {"pkt": pkt_loss, "rkd": lambda s, t: rkd_loss(s, t, distance_weight=25.0, angle_weight=50.0)}
OURS = sorted(MAPS | POOLED)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def loss_of(name, s, t):
    """A loss of maps as it is, one of pooled features of flattened maps."""
    return MAPS[name](s, t) if name in MAPS else POOLED[name](s.flatten(1), t.flatten(1))


def shapes(stages, pooled=8):
    return Shapes(7, stages=((4, 8, 8),) * (stages + 1), final=(4, 8, 8), pooled=pooled)


def spec(student, teacher):
    return Spec(student, teacher, num_classes=7, num_samples=8, labels=torch.arange(8) % 7, batch_size=8)


def node(name):
    """A method's own numbers; warm-ups as for a recipe of full length, so that no resolver has to be registered."""
    text = (harness.CONF / "distiller" / f"{name}.yaml").read_text()
    return OmegaConf.to_container(OmegaConf.create(re.sub(r"\$\{scaled:([^}]*)\}", r"\1", text)))


def is_alone(name):
    kind = get_class(node(name)["_target_"])
    return kind.needs_teacher and not issubclass(kind, Composite)


ALONE = [name for name in harness.METHODS if is_alone(name)]


# ---------------------------------------------------------------------- stages that meet


@pytest.mark.parametrize(
    ("counts", "pairs"),
    [
        ((3, 3), [(1, 1), (2, 2), (3, 3)]),
        ((4, 4), [(1, 1), (2, 2), (3, 3), (4, 4)]),
        ((3, 4), [(1, 2), (2, 3), (3, 4)]),
        ((4, 3), [(2, 1), (3, 2), (4, 3)]),
        ((5, 3), [(2, 1), (4, 2), (5, 3)]),
        ((1, 4), [(1, 4)]),
    ],
)
def test_stages_meet_by_relative_depth_and_the_last_the_last(counts, pairs):
    assert list(stage_pairs(*map(shapes, counts))) == pairs


def test_pairs_are_places_in_the_answers():
    student, teacher = (Output(torch.empty(0), stages=tuple(torch.arange(n))) for n in (4, 5))
    met = paired(student, teacher, stage_pairs(shapes(3), shapes(4)))
    assert [(int(s), int(t)) for s, t in met] == [(1, 2), (2, 3), (3, 4)]


# ---------------------------------------------------------------------- sizes


def test_shrinking_averages_the_positions_that_share_one():
    x = torch.rand(2, 3, 7, 4)
    small = shrink(x, (3, 2))
    rows = [(0, 3), (2, 5), (4, 7)]  # 7 positions among 3 overlap
    for i, (top, bottom) in enumerate(rows):
        for j in range(2):
            torch.testing.assert_close(small[:, :, i, j], x[:, :, top:bottom, 2 * j : 2 * j + 2].mean(dim=(2, 3)))
    assert shrink(x, (7, 4)) is x


def test_two_maps_meet_at_the_smaller_of_both_sizes():
    s, t = at_one_size(torch.rand(2, 3, 8, 2), torch.rand(2, 5, 4, 4))
    assert (s.shape, t.shape) == ((2, 3, 4, 2), (2, 5, 4, 2))


def test_unit_vectors_are_those_of_torch_but_for_the_gradient_at_zero():
    x = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    ours, theirs = unit(x, dim=1), F.normalize(x, dim=1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs)))
    short = torch.tensor([[0.0, 0.0], [3e-4, 4e-4]], requires_grad=True)
    directions = unit(short, dim=1, shortest=1e-3)
    assert (directions == 0).all()
    (gradient,) = torch.autograd.grad(directions.sum(), short)
    assert (gradient == 0).all()
    torch.testing.assert_close(unit(short, dim=1)[1], torch.tensor([0.6, 0.8]))


# ---------------------------------------------------------------------- networks that show too little


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_networks_that_answer_with_logits_alone_are_refused(name, who):
    both = {"student": shapes(3), "teacher": shapes(3), who: Shapes(7)}
    with pytest.raises(UserError, match=rf"distiller \w+ reads .* this {who} does not show: .* kd, .*\)\.$"):
        build_distiller(node(name), spec(**both), seed=0)


@pytest.mark.parametrize("name", OURS)
def test_pooled_features_are_enough_for_relations_of_them(name):
    """As a vision transformer shows them."""
    both = spec(Shapes(7, pooled=8), Shapes(7, pooled=5))
    if name in POOLED:
        build_distiller(node(name), both, seed=0)
    else:
        with pytest.raises(UserError, match="the feature maps of stages"):
            build_distiller(node(name), both, seed=0)


def test_a_stem_alone_is_no_stage():
    with pytest.raises(UserError, match="this teacher"):
        require(spec(shapes(1), shapes(0)), Everything)
    assert require(spec(shapes(1), shapes(2)), Everything) == (shapes(1), shapes(2))


class Everything(Distiller):
    reads = ("stages", "final", "pooled")


# what networks show: plain vision transformers; a head that works between pooling and classifier; the zoo's MobileNetV2
KINDS = {
    "logits": Shapes(7),
    "pooled": Shapes(7, pooled=8),
    "stages": Shapes(7, stages=((4, 8, 8), (8, 4, 4), (8, 2, 2))),
    "stages, pooled": Shapes(7, stages=((4, 8, 8), (8, 4, 4), (8, 2, 2)), pooled=8),
    "all": Shapes(7, stages=((4, 8, 8), (8, 4, 4), (8, 2, 2)), final=(8, 2, 2), pooled=8),
}


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", KINDS)
def test_the_methods_that_would_work_are_those_that_can_be_built(student, teacher):
    """Each method of the registry is tried, and says the same of itself."""
    both = spec(KINDS[student], KINDS[teacher])
    built = []
    for name in ALONE:
        try:
            build_distiller(node(name), both, seed=0)
            built.append(name)
        except UserError as error:
            said = str(error)
            assert "does not show" in said
            assert said.endswith(f"works with these networks ({', '.join(would_work(both.student, both.teacher))}).")
    assert would_work(both.student, both.teacher) == built
    assert {"kd", "mcld", "rld"} <= set(built)
    assert ("rkd" in built) == bool(both.student.pooled and both.teacher.pooled)
    assert ("catkd" in built) == (student == teacher == "all")
    assert ("simkd" in built) == (teacher == "all" and student not in ("logits", "pooled"))


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize("name", OURS)
def test_half_precision_features_are_compared_in_float32_also_under_autocast(name):
    s, t = torch.randn(2, 5, 6, 4, 4).bfloat16().unbind()
    plain = loss_of(name, s.float(), t.float())
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(name, s.float(), t.float()), plain)
        assert torch.equal(loss_of(name, s, t), plain)
    assert torch.equal(loss_of(name, s, t), plain)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("rows", [1, 5])
def test_value_and_gradient_stay_finite_and_small_where_features_degenerate(name, rows):
    x = torch.randn(rows, 6, 4, 4).relu()
    dead, same, sparse = torch.zeros_like(x), x[:1].expand_as(x), x.clone()
    sparse[0] = 0  # one sample without any activity
    for s in (dead, same, sparse, 1e4 * x):
        for t in (torch.randn_like(x), dead, same, 1e4 * torch.randn_like(x)):
            s = s.clone().requires_grad_()
            loss = loss_of(name, s, t)
            (gradient,) = torch.autograd.grad(loss, s)
            assert loss.isfinite()
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 1e5  # a normalisation at zero would give 1e12


@pytest.mark.parametrize("name", sorted(set(OURS) - {"vid"}))
def test_is_zero_for_equal_features_and_positive_for_others(name):
    s, t = torch.randn(2, 5, 6, 4, 4).unbind()
    assert loss_of(name, t, t).item() == pytest.approx(0, abs=1e-6)
    assert loss_of(name, s, t) > 1e-4


@pytest.mark.parametrize("name", sorted(set(OURS) - {"fitnet", "vid"}))
def test_relations_do_not_see_the_scale_of_the_features(name):
    s, t = torch.randn(2, 5, 6, 4, 4).unbind()
    torch.testing.assert_close(loss_of(name, 30 * s, 0.1 * t), loss_of(name, s, t), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_the_teacher_gets_no_gradient(name):
    s, t = torch.randn(2, 5, 6, 4, 4).unbind()
    s.requires_grad_()
    t.requires_grad_()
    loss_of(name, s, t).backward()
    assert s.grad.any()
    assert t.grad is None


@pytest.mark.parametrize(("teacher", "student"), small_pairs.PAIRS)
@pytest.mark.parametrize("name", OURS)
def test_everything_learns_on_every_kind_of_pair(name, teacher, student):
    small_pairs.assert_all_learn(node(name), teacher, student)
