"""Reads what networks answered to the test set, from the file beside a run's results."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from distill.errors import UserError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """Of one network.

    Attributes:
        logits: Shape (images, classes).
        features: Before the classifier, shape (images, channels); None where the network does not show them.
    """

    logits: Array
    features: Array | None


@dataclass(frozen=True)
class Observed:
    """Of a run.

    Attributes:
        labels: True classes, shape (images,).
        classes: Their names, in the labels' order; empty where the data set has none.
        student: What was deployed.
        teacher: None without one.
    """

    labels: NDArray[np.int64]
    classes: list[str]
    student: Answers
    teacher: Answers | None


def images_in(path: Path) -> int:
    """How many images a file is of; 0 where there is none, or it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return int(file.get_slice("labels").get_shape()[0])
    except (OSError, SafetensorError):
        return 0


def read_observed(path: Path, *, limit: int | None = None) -> Observed:
    """What `distill.run.observe` wrote.

    Args:
        path: A run's features.safetensors.
        limit: The first images only; None for all.

    Raises:
        UserError: If the file is absent or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {key: file.get_tensor(key)[:limit] for key in list(file.keys())}
            classes = json.loads((file.metadata() or {}).get("classes", "[]"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error

    def of(who: str) -> Answers | None:
        if f"{who}.logits" not in tensors:
            return None
        features = tensors.get(f"{who}.features")
        return Answers(
            tensors[f"{who}.logits"].astype(np.float32), None if features is None else features.astype(np.float32)
        )

    student = of("student")
    if student is None or "labels" not in tensors:
        raise UserError(f"{path} does not hold a student's answers.")
    return Observed(tensors["labels"].astype(np.int64), classes, student, of("teacher"))
