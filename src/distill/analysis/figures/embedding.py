"""Features before the classifier in the plane (the paper's Figure 4): t-SNE with scikit-learn's default settings."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distill.analysis.figures import style
from distill.analysis.observed import Array, Observed
from distill.errors import UserError

SEED = 0
NAMED = 7  # classes that are told apart by colour and marker; more cannot be, by all eyes
GREYS = ("0.62", "0.72", "0.82", "0.90")


def embed(features: Array) -> Array:
    """t-SNE of features, shape (images, channels), to (images, 2), from one seed."""
    from sklearn.manifold import TSNE  # a second to import

    plane: Array = TSNE(n_components=2, random_state=SEED).fit_transform(features)
    return plane


def settings() -> str:
    """What `embed` does, as a caption says it, read off the installed scikit-learn."""
    import sklearn
    from sklearn.manifold import TSNE

    values = TSNE().get_params()
    named = f"perplexity {values['perplexity']:g}, {values['init']} start, learning rate {values['learning_rate']}"
    return f"t-SNE, scikit-learn {sklearn.__version__} defaults ({named}), seed {SEED}"


def silhouette(features: Array, labels: NDArray[np.int64]) -> float:
    """How well classes stand apart in the features themselves, from -1 to 1; the plane plays no part."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(features, labels))


def named_classes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The classes that are told apart: evenly spread over those there are, not chosen by how they look."""
    there = np.unique(labels)
    return np.unique(there[np.linspace(0, len(there) - 1, min(NAMED, len(there))).round().astype(int)])


def feature_maps(runs: Sequence[tuple[str, Observed]], path: str | Path, *, title: str) -> dict[str, Array]:
    """Draw the features of some students, and of the teacher of the first that has one, a panel each.

    All classes are drawn in greys, seven of them in colours with markers of their own.

    Args:
        runs: Their labels, and what their networks answered to the same images.
        path: The picture; .png, .pdf or .svg.
        title: What they have in common.

    Returns:
        The points by label, each of shape (images, 2), as drawn.

    Raises:
        UserError: If there is no run, a network does not show its features, there are too few images, or the format is
            unknown.
    """
    style.check(Path(path))
    if not runs:
        raise UserError("There is no finished run to draw.")
    labels, classes = runs[0][1].labels, runs[0][1].classes
    teacher = next((run.teacher for _, run in runs if run.teacher is not None), None)
    features = {label: run.student.features for label, run in runs}
    if teacher is not None and teacher.features is not None:
        features["teacher"] = teacher.features
    if hidden := [label for label, values in features.items() if values is None]:
        raise UserError(f"{', '.join(hidden)}: this network does not show the features before its classifier.")
    if len(labels) <= 30 or len(np.unique(labels)) < 2:
        raise UserError(
            f"t-SNE needs more than its perplexity of 30 images, of several classes; {len(labels)} are here."
        )
    planes = {label: embed(values) for label, values in features.items() if values is not None}
    columns = 2 if len(planes) == 4 else min(3, len(planes))
    rows = -(-len(planes) // columns)
    with mpl.rc_context(style.FONTS):
        each = style.PAGE / max(2, columns)
        figure = style.new(each * columns, each * 1.08 * rows + 0.75)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(planes) :]:
            axes.set_visible(False)
        for axes, (label, plane) in zip(grid, planes.items(), strict=False):
            _panel(axes, plane, labels)
            values = features[label]
            assert values is not None
            axes.set_title(f"{label}\nsilhouette of the features {silhouette(values, labels):+.3f}", fontsize=8)
        _legend(figure, grid[0], labels, classes, columns, title)
        count = f"{len(labels):,} test images of {len(np.unique(labels))} classes"
        figure.supxlabel(f"{settings()}\n{count}, {len(named_classes(labels))} of them named", fontsize=style.SMALL)
        style.save(figure, path)
    return planes


def _panel(axes: Axes, plane: Array, labels: NDArray[np.int64]) -> None:
    named = named_classes(labels)
    size = max(1.0, min(7.0, 9000 / len(labels)))
    for place, label in enumerate(np.unique(labels)):
        if label not in named:
            x, y = plane[labels == label].T
            grey = GREYS[place % len(GREYS)]
            # as points of a picture: tens of thousands of shapes make a .pdf that nothing opens
            axes.scatter(x, y, s=size, color=grey, linewidth=0, rasterized=True)
    for place, label in enumerate(named):
        x, y = plane[labels == label].T
        axes.scatter(
            x,
            y,
            s=max(8.0, 2.6 * size),
            color=style.COLOURS[place % len(style.COLOURS)],
            marker=style.MARKERS[place % len(style.MARKERS)],
            edgecolor="white",
            linewidth=0.15,
            rasterized=True,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_box_aspect(1)
    axes.spines[:].set_color("0.8")


def _legend(
    figure: Figure, axes: Axes, labels: NDArray[np.int64], classes: list[str], columns: int, title: str
) -> None:
    handles = [
        axes.plot(
            [], [], linestyle="", marker=style.MARKERS[i], color=style.COLOURS[i], markersize=4,
            label=classes[label].replace("_", " ") if classes else f"class {label}",
        )[0]
        for i, label in enumerate(named_classes(labels))
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles) if columns > 1 else 4, frameon=False,
        columnspacing=1.0, handletextpad=0.2, title=title, title_fontsize=9.5,
    )  # fmt: skip
