"""The pictures of one run, for loggers that show pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.build import channels_last
from distill.deploy import load
from distill.files import METRICS, RESULT
from distill.run.observe import keep_answers
from distill.run.parts import Prepared

CURVE, RELATIONS = "accuracy.png", "correlation.png"


def show(loggers: Iterable[Any], folder: Path, parts: Prepared) -> None:
    """Draw a finished run's accuracy, and how far its student relates classes as the teacher does, and log them.

    Nothing is drawn or asked where no logger takes pictures. They stay in the run's folder, with what both networks
    answered to the test set, from which other figures are drawn.

    Args:
        loggers: Lightning's; those with `log_image` (Weights & Biases) take pictures.
        folder: Of the finished run.
        parts: Of the run.
    """
    takers = [logger for logger in loggers if hasattr(logger, "log_image")]
    if not takers:
        return
    from distill.analysis.figures.correlation import correlation_difference
    from distill.analysis.figures.curves import accuracy_curves
    from distill.analysis.figures.style import trained
    from distill.analysis.observed import read_observed
    from distill.analysis.store import find_results
    from distill.analysis.table import group

    results, _ = find_results([folder / RESULT])
    rows, _ = group(results)
    pictures = {}
    if (folder / METRICS).exists():
        accuracy_curves(results, folder / CURVE)
        pictures["pictures/accuracy"] = folder / CURVE
    if parts.asked is not None:
        # the file holds the last epoch, whatever the best one's scores have left in memory
        networks = {"student": channels_last(load(folder)), "teacher": parts.asked}
        kept = keep_answers(folder, parts.data, networks, device=parts.device, precision=parts.precision, limit=None)
        title = f"{trained(rows)}, seed {results[0].seed}"
        correlation_difference([(rows[0].label, read_observed(kept))], folder / RELATIONS, title=title)
        pictures["pictures/correlation difference"] = folder / RELATIONS
    for logger in takers:
        for key, path in pictures.items():
            logger.log_image(key=key, images=[str(path)])
