"""Small networks of every family, in the pairs whose maps differ in ways of their own; all for images of 32 px."""

from collections.abc import Callable
from typing import Any

import torch

from distill.build import build_distiller, freeze
from distill.distillers import Distiller
from distill.models.mobilenetv2 import MobileNetV2
from distill.models.network import Network
from distill.models.resnet import CifarResNet
from distill.models.resnetv2 import FourStageResNet
from distill.models.shufflenetv1 import ShuffleNetV1
from distill.models.shufflenetv2 import ShuffleNetV2
from distill.models.vgg import CifarVGG
from distill.models.wrn import WideResNet
from distill.types import Batch, Spec, Step

CLASSES = 7

FAMILIES: dict[str, Callable[[], Network]] = {
    "resnet": lambda: CifarResNet(depth=8, widths=[4, 4, 6, 8], num_classes=CLASSES),  # 32, 16, 8
    "wide": lambda: CifarResNet(depth=8, widths=[6, 6, 12, 24], num_classes=CLASSES),
    "wrn": lambda: WideResNet(depth=10, widen_factor=1, num_classes=CLASSES),  # stages end before a normalisation
    "vgg": lambda: CifarVGG(convolutions=[1] * 5, widths=[4, 4, 6, 8, 8], num_classes=CLASSES),  # 16, 8, 4, 4
    "resnet50": lambda: FourStageResNet(blocks=[1] * 4, bottleneck=True, width=2, num_classes=CLASSES),  # 32, 16, 8, 4
    "mobilenetv2": lambda: MobileNetV2(expansion=2, width=0.25, num_classes=CLASSES),  # 16, 8, 4, 2
    "shufflenetv1": lambda: ShuffleNetV1(widths=[36, 72, 144], units=[1, 2, 1], groups=3, num_classes=CLASSES),
    "shufflenetv2": lambda: ShuffleNetV2(widths=[8, 16, 32], units=[1, 2, 1], last_width=24, num_classes=CLASSES),
}

# teacher and student, as in the papers' pairs; then what they do not have: fewer stages against more either way round,
# a teacher with smaller maps, and one without norms
PAIRS = (
    *(("wide", "resnet"), ("wrn", "wrn"), ("wrn", "resnet"), ("wrn", "mobilenetv2"), ("vgg", "vgg")),
    *(("vgg", "mobilenetv2"), ("resnet50", "mobilenetv2"), ("wide", "shufflenetv1"), ("wide", "shufflenetv2")),
    *(("mobilenetv2", "wrn"), ("resnet50", "resnet"), ("shufflenetv2", "vgg")),
)


def build(node: dict[str, Any], teacher: str, student: str) -> tuple[Distiller, Network, Network]:
    """A prepared method with its student and its frozen teacher, from one seed."""
    torch.manual_seed(0)
    large, small = freeze(FAMILIES[teacher]()), FAMILIES[student]()
    for norm in large.norms:  # as trained ones: not all alike
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)  # type: ignore[arg-type]
        torch.nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    labels = torch.arange(40) % CLASSES
    method = build_distiller(node, Spec(small.shapes(32), large.shapes(32), CLASSES, 40, labels, 8), seed=0)
    method.prepare(small, large)
    return method, small, large


def step_of(method: Distiller, student: Network, teacher: Network, *, rows: int = 8) -> Step:
    """One batch, observed."""
    torch.manual_seed(1)
    batch = Batch(torch.rand(rows, 3, 32, 32), torch.arange(rows) % CLASSES, torch.arange(rows))
    return Step(batch, *method.observe(student, teacher, batch), epoch=1, step=0)


def assert_all_learn(node: dict[str, Any], teacher: str, student: str, *, frozen: tuple[str, ...] = ()) -> None:
    """One step is finite, and every parameter of student and method has a gradient that is not zero.

    Args:
        node: The method's.
        teacher: See `FAMILIES`.
        student: Likewise.
        frozen: How the names of the student's parameters begin that the method does not train.
    """
    method, small, large = build(node, teacher, student)
    before = {name: value.clone() for name, value in large.state_dict().items()}
    terms = method(step_of(method, small, large))
    assert all(term.ndim == 0 and term.isfinite() and term > 0 for term in terms.values())
    sum(terms.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    still = {name for name, p in small.named_parameters() if not p.requires_grad}
    assert still == {name for name, _ in small.named_parameters() if name.startswith(frozen)} if frozen else not still
    learning = [(n, p) for part in (small, method) for n, p in part.named_parameters() if p.requires_grad]
    for name, p in learning:
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name
    assert all(p.grad is None for p in large.parameters())
    assert all(torch.equal(value, before[name]) for name, value in large.state_dict().items())
    # a batch of one, as an epoch may end with
    assert all(term.isfinite() for term in method(step_of(method, small, large, rows=1)).values())
