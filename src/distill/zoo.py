"""The one catalogue of networks. Imports no torch, so that help and completion stay fast.

A new network is one line here (and its module, if new).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import UserError

SMALL, LARGE = 32, 224  # px
OF_LARGE_IMAGES = ("imagenet",)  # data sets on which a paper's ResNet18 is the one for large images


@dataclass(frozen=True)
class Entry:
    """One network.

    Attributes:
        name: What the command line calls it.
        target: Its class, as a dotted path.
        arguments: Keyword arguments of the class, but for `num_classes`.
        papers: Names under which papers' tables and public code bases know it.
        size: Of the images it is made for, in px; others fit as well.
    """

    name: str
    target: str
    arguments: Mapping[str, Any]
    papers: tuple[str, ...]
    size: int = SMALL


def _resnet(name: str, depth: int, widths: tuple[int, ...], *papers: str) -> Entry:
    return Entry(name, "distill.models.resnet.CifarResNet", {"depth": depth, "widths": widths}, papers)


def _four_stage(name: str, blocks: tuple[int, ...], bottleneck: bool, *papers: str) -> Entry:
    arguments = {"blocks": blocks, "bottleneck": bottleneck, "width": 64}
    return Entry(name, "distill.models.resnetv2.FourStageResNet", arguments, papers)


def _imagenet(depth: int, blocks: tuple[int, ...], bottleneck: bool) -> Entry:
    arguments = {"blocks": blocks, "bottleneck": bottleneck, "width": 64}
    papers = (f"ResNet{depth}", f"ResNet-{depth}", f"R{depth}")
    name, target = f"imagenet_resnet{depth}", "distill.models.imagenet_resnet.ImageNetResNet"
    return Entry(name, target, arguments, papers, LARGE)


def _wrn(depth: int, factor: int) -> Entry:
    papers = (f"WRN-{depth}-{factor}", f"W{depth}-{factor}")
    arguments = {"depth": depth, "widen_factor": factor}
    return Entry(f"wrn_{depth}_{factor}", "distill.models.wrn.WideResNet", arguments, papers)


def _vgg(depth: int, convolutions: tuple[int, ...]) -> Entry:
    arguments = {"convolutions": convolutions, "widths": (64, 128, 256, 512, 512)}
    return Entry(f"vgg{depth}", "distill.models.vgg.CifarVGG", arguments, (f"VGG{depth}", f"VGG-{depth}"))


NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

CATALOGUE: tuple[Entry, ...] = (
    _resnet("resnet8", 8, NARROW, "ResNet8", "R8"),
    _resnet("resnet14", 14, NARROW, "ResNet14", "R14"),
    _resnet("resnet20", 20, NARROW, "ResNet20", "R20"),
    _resnet("resnet32", 32, NARROW, "ResNet32", "R32"),
    _resnet("resnet44", 44, NARROW, "ResNet44", "R44"),
    _resnet("resnet56", 56, NARROW, "ResNet56", "R56"),
    _resnet("resnet110", 110, NARROW, "ResNet110", "R110"),
    _resnet("resnet8x4", 8, WIDE, "ResNet8x4", "ResNet8×4", "R8x4"),
    _resnet("resnet32x4", 32, WIDE, "ResNet32x4", "ResNet32×4", "R32x4"),
    _wrn(16, 1),
    _wrn(16, 2),
    _wrn(16, 4),
    _wrn(28, 2),
    _wrn(28, 4),
    _wrn(40, 1),
    _wrn(40, 2),
    _vgg(8, (1, 1, 1, 1, 1)),
    _vgg(11, (1, 1, 2, 2, 2)),
    _vgg(13, (2, 2, 2, 2, 2)),
    _vgg(16, (2, 2, 3, 3, 3)),
    _vgg(19, (2, 2, 4, 4, 4)),
    _four_stage("cifar_resnet18", (2, 2, 2, 2), False, "ResNet18", "R18"),
    _four_stage("cifar_resnet50", (3, 4, 6, 3), True, "ResNet50", "R50"),
    Entry(
        "mobilenetv2",
        "distill.models.mobilenetv2.MobileNetV2",
        {"expansion": 6, "width": 0.5},
        ("MobileNetV2", "MobileNet-V2", "MN-V2", "MV2"),
    ),
    Entry(
        "shufflenetv1",
        "distill.models.shufflenetv1.ShuffleNetV1",
        {"widths": (240, 480, 960), "units": (4, 8, 4), "groups": 3},
        ("ShuffleV1", "ShuffleNetV1", "ShuffleNet-V1", "SHN-V1"),
    ),
    Entry(
        "shufflenetv2",
        "distill.models.shufflenetv2.ShuffleNetV2",
        {"widths": (116, 232, 464), "units": (4, 8, 4), "last_width": 1024},
        ("ShuffleV2", "ShuffleNetV2", "ShuffleNet-V2", "SHN-V2"),
    ),
    _imagenet(18, (2, 2, 2, 2), False),
    _imagenet(34, (3, 4, 6, 3), False),
    _imagenet(50, (3, 4, 6, 3), True),
    Entry(
        "mobilenetv1",
        "distill.models.mobilenetv1.MobileNetV1",
        {},
        ("MobileNetV1", "MobileNet-V1", "MN-V1", "MV1"),
        LARGE,
    ),
)


def by_name(name: str) -> Entry:
    """The network that the command line calls `name`.

    Raises:
        UserError: If there is none; lists the choices, the closest first.
    """
    names = [entry.name for entry in CATALOGUE]
    if name in names:
        return CATALOGUE[names.index(name)]
    close = difflib.get_close_matches(name, names)
    choices = ", ".join([*close, *(choice for choice in names if choice not in close)])
    raise UserError(f"no network is called {name!r}; choose one of {choices}")


def by_paper(name: str, data: str) -> Entry | None:
    """The network that papers' tables or public code bases, or we, call `name` where they speak of a data set.

    Args:
        name: "R32x4", "resnet32x4"; of two networks of one name the one for images of this size is meant: "ResNet50" is
            `cifar_resnet50` on CIFAR-100 and `imagenet_resnet50` on ImageNet.
        data: As in the data group.
    """
    size = LARGE if data in OF_LARGE_IMAGES else SMALL
    found = [entry for entry in CATALOGUE if name == entry.name or name in entry.papers]
    return min(found, key=lambda entry: entry.size != size, default=None)


def offer() -> None:
    """Store every network, and timm's and torchvision's, into Hydra's groups `student` and `teacher`.

    The keys beside the arguments say how it is used, and are no arguments of the class: `label`, `weights` (a file;
    None: start untrained), `mean`, `std` and `input_size` (in px; None: as the images come), and for a teacher
    `allow_chance` (accept one that is no better than guessing), `keep` (its answers: off, memory or disk) and `keep_in`
    (the folder of those on disk).
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    of_teacher = {"allow_chance": False, "keep": "off", "keep_in": "kept"}
    for entry in CATALOGUE:
        node = {
            "_target_": entry.target,
            **entry.arguments,
            "num_classes": "${data.num_classes}",
            "label": entry.name,
            "weights": None,
            "mean": "${data.mean}",
            "std": "${data.std}",
            "input_size": None,
        }
        weights = f"weights/${{names.data}}/{entry.name}.safetensors"
        store.store(group="student", name=entry.name, node=node)
        store.store(group="teacher", name=entry.name, node={**node, "weights": weights, **of_teacher})
    timm = {
        "_target_": "distill.models.adapters.TimmNetwork",
        "name": "???",
        "pretrained": False,
        "drop_path": None,
        "num_classes": "${data.num_classes}",
        "label": "${.name}",
        "weights": None,
        "mean": None,  # here None means: what the model prefers, or else the data set's
        "std": None,
        "input_size": None,
    }
    torchvision = {k: v for k, v in timm.items() if k != "drop_path"}
    torchvision["_target_"] = "distill.models.torchvision_models.TorchvisionNetwork"
    for name, node in (("timm", timm), ("torchvision", torchvision)):
        store.store(group="student", name=name, node=node)
        store.store(group="teacher", name=name, node={**node, **of_teacher})
