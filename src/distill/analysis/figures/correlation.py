"""How far a student's relations between classes are from its teacher's (the paper's Figure 6), read in two ways.

The figure is called a difference of correlation matrices, and public code draws two different things under that name:

- "class means" (the notebook of DKD's authors, megvii-research/mdistiller): the logits are averaged over the images of
  each true class, which gives a matrix of classes by classes; drawn is |student - teacher| / 3 without its diagonal.
- "correlation" (the figure of CRD, Tian et al., ICLR 2020): the correlation coefficients between the logits of every
  two classes over all images; drawn is |student - teacher|.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from distill.analysis.figures import style
from distill.analysis.observed import Array, Observed
from distill.errors import UserError

Matrix = NDArray[np.float64]
SCALE = 3.0  # by which the notebook divides, so that the picture's range is [0, 1]


def class_means(logits: Array, labels: NDArray[np.int64]) -> Matrix:
    """Mean logits of the images of each true class.

    Args:
        logits: Shape (images, classes).
        labels: Shape (images,).

    Returns:
        Shape (classes, classes), a row per true class; NaN for a class without images.
    """
    classes = logits.shape[1]
    sums = np.zeros((classes, classes))
    np.add.at(sums, labels, logits.astype(np.float64))
    counts = np.bincount(labels, minlength=classes).astype(float)
    counts[counts == 0] = np.nan
    return np.asarray(sums / counts[:, None])


def of_class_means(student: Array, teacher: Array, labels: NDArray[np.int64]) -> Matrix:
    """The first reading: |student - teacher| / 3 of `class_means`, with a diagonal of zeros, (classes, classes)."""
    difference = np.abs(class_means(student, labels) - class_means(teacher, labels)) / SCALE
    np.fill_diagonal(difference, 0.0)
    return difference


def of_correlations(student: Array, teacher: Array) -> Matrix:
    """The second reading: |student - teacher| of correlations between classes over images, (classes, classes)."""
    return np.asarray(np.abs(np.corrcoef(student, rowvar=False) - np.corrcoef(teacher, rowvar=False)))


def off_diagonal(matrix: Matrix) -> float:
    """The mean without the diagonal and what is not known."""
    return float(np.nanmean(matrix[~np.eye(len(matrix), dtype=bool)]))


READINGS = (
    "class means (DKD's notebook)\n|student − teacher| / 3, no diagonal",
    "correlation over images (CRD)\n|student − teacher|",
)


def correlation_difference(
    runs: Sequence[tuple[str, Observed]], path: str | Path, *, title: str
) -> dict[str, tuple[Matrix, Matrix]]:
    """Draw both readings for some runs, a column each.

    Args:
        runs: Their labels, and what their networks answered to the same images.
        path: The picture; .png, .pdf or .svg.
        title: What they have in common.

    Returns:
        Both matrices by label, as drawn.

    Raises:
        UserError: If there is no run, one has no teacher, or the format is unknown.
    """
    style.check(Path(path))
    if not runs:
        raise UserError("There is no finished run to draw.")
    found: dict[str, tuple[Matrix, Matrix]] = {}
    for label, run in runs:
        if run.teacher is None:
            raise UserError(f"{label} has no teacher to be compared with: leave it out with --methods.")
        student, teacher = run.student.logits, run.teacher.logits
        found[label] = (of_class_means(student, teacher, run.labels), of_correlations(student, teacher))
    images = len(runs[0][1].labels)
    with mpl.rc_context(style.FONTS):
        if len(runs) == 1:  # both readings side by side
            figure = style.new(5.6, 3.7)
            grid = figure.subplots(1, 2, squeeze=False).T
        else:
            each = (style.PAGE - 1.1) / max(3, len(runs))
            figure = style.new(1.1 + each * len(runs), 2 * each + 1.35)
            grid = figure.subplots(2, len(runs), squeeze=False)
        # one scale per reading, so that methods can be compared
        top = max(float(np.nanmax(matrices[1])) for matrices in found.values())
        for row, name in enumerate(READINGS):
            high = (1.0, top)[row]
            matrices = {label: pair[row] for label, pair in found.items()}
            for axes, (label, matrix) in zip(grid[row], matrices.items(), strict=True):
                shown = axes.imshow(
                    matrix, cmap="cividis", vmin=0.0, vmax=high, interpolation="nearest", rasterized=True
                )
                head = f"{label}\n" if row == 0 or len(runs) == 1 else ""
                axes.set_title(f"{head}mean {off_diagonal(matrix):.3f}", fontsize=style.SMALL + 1)
                axes.set_xticks([])
                axes.set_yticks([])
            grid[row, 0].set_ylabel(name, fontsize=style.SMALL)
            over = any(np.nanmax(matrix) > high for matrix in matrices.values())
            extend = "max" if over else "neither"
            bar = figure.colorbar(
                shown, ax=grid[row].tolist(), shrink=0.9, aspect=18, pad=0.02, extend=extend,
                location="bottom" if len(runs) == 1 else "right",
            )  # fmt: skip
            bar.outline.set_visible(False)
        classes = len(next(iter(found.values()))[0])
        below = f"{classes} × {classes} classes, {images:,} test images; mean: without the diagonal; dark is alike"
        figure.supxlabel(below, fontsize=style.SMALL)
        figure.suptitle(title)
        style.save(figure, path)
    return found
