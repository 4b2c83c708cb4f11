"""Reliability and risk-coverage plots of a study, one file for each split and k."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.evaluation.calibration_error import BINS
from lab.evaluation.cells import CellResult, Floats
from lab.evaluation.metrics import ItemScores
from lab.evaluation.selective_risk import risk_curve

COVERAGES = np.linspace(0.02, 1.0, 50)


def reliability_bins(confidence: Floats, correct: Floats, bins: int = BINS) -> tuple[Floats, Floats, Floats]:
    """Return mean confidence, accuracy, and fraction of all items, of each bin that holds items."""
    column = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(column, minlength=bins)
    held = count > 0
    means = [
        np.bincount(column, weights=values, minlength=bins)[held] / count[held]
        for values in (confidence, correct)
    ]
    return means[0], means[1], count[held] / len(confidence)


def mean_risk(results: Sequence[CellResult]) -> Floats:
    """Return the selective risk at each of `COVERAGES`, averaged over cells.

    Each cell ranks its own items.
    """
    curves = []
    for result in results:
        scored = ItemScores.of(result.probabilities, result.labels)
        curve = risk_curve(scored.confidence, scored.correct)
        curves.append(curve[np.ceil(COVERAGES * len(curve)).astype(int) - 1])
    mean: Floats = np.mean(curves, axis=0)
    return mean


def plot_reliability(results: Mapping[str, Sequence[CellResult]], path: Path) -> None:
    """Draw one panel a method: accuracy against confidence, over the items of all its cells.

    The area of a point is the fraction of items in its bin.
    """
    columns = min(4, len(results))
    figure, axes = _figure(columns, math.ceil(len(results) / columns))
    for axis, (method, cells) in zip(axes, results.items(), strict=False):
        scored = [ItemScores.of(result.probabilities, result.labels) for result in cells]
        confidence = np.concatenate([s.confidence for s in scored])
        correct = np.concatenate([s.correct for s in scored])
        mean_confidence, accuracy, share = reliability_bins(confidence, correct)
        axis.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
        axis.plot(mean_confidence, accuracy, linewidth=1)
        axis.scatter(mean_confidence, accuracy, s=300 * share)
        axis.set(title=method, xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    for axis in axes[len(results) :]:
        axis.remove()
    figure.savefig(path, dpi=110)


def plot_risk_coverage(results: Mapping[str, Sequence[CellResult]], path: Path) -> None:
    """Draw all methods in one panel.

    It shows the error among the answers given against the fraction of items that are answered.
    """
    figure, (axis,) = _figure(1, 1, size=6.0)
    for method, cells in results.items():
        axis.plot(COVERAGES, mean_risk(cells), label=method)
    axis.set(xlabel="coverage", ylabel="selective error", xlim=(0, 1))
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _figure(columns: int, rows: int, size: float = 3.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(size * columns, size * rows), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).flat)
