"""From cells to what can be said of a method: means over tasks, paired differences, intervals.

A task's value is the mean over its support seeds. The standard error is over tasks, which vary
most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, sem

from lab.evaluation.calibration_error import calibration_matrix
from lab.evaluation.cells import CellResult, Floats
from lab.evaluation.metrics import ITEM_METRICS, ItemScores

LEVEL = 0.95
# Differences in these metrics are resampled over tasks and, within a task, over items; those in
# other metrics over tasks alone.
TWO_LEVEL = (*ITEM_METRICS, "ece15")


@dataclass(frozen=True)
class Estimate:
    """A mean over `tasks` tasks and its standard error; nan where there are too few."""

    mean: float
    standard_error: float
    tasks: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate from one value a task.

        A value of nan, where the metric does not apply to the task, is left out.
        """
        kept = np.array([value for value in values if not math.isnan(value)])
        if not len(kept):
            return cls(math.nan, math.nan, 0)
        error = float(sem(kept)) if len(kept) > 1 else math.nan
        return cls(float(kept.mean()), error, len(kept))


@dataclass(frozen=True)
class Difference:
    """A paired difference (method less baseline) with its percentile bootstrap interval.

    The level of the interval is `LEVEL`. `resampled` says what was resampled.
    """

    estimate: Estimate
    low: float
    high: float
    resampled: str


def task_interval(differences: Sequence[float], resamples: int, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval of a mean of one difference a task, by resampling tasks.

    It is nan with fewer than two tasks.
    """
    kept = np.array([value for value in differences if not math.isnan(value)])
    if len(kept) < 2:
        return math.nan, math.nan
    found = bootstrap(
        (kept,),
        np.mean,
        n_resamples=resamples,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class PairedItems:
    """One task under two methods.

    `differences` [n, metrics] are those of the item metrics. `own` and `baseline` [seeds, n, bins]
    are the calibration matrices of the two methods.
    """

    differences: Floats
    own: Floats
    baseline: Floats

    @classmethod
    def of(cls, own: Sequence[CellResult], baseline: Sequence[CellResult]) -> PairedItems:
        """Pair the task's cells, seed by seed. The items are the same in all of them."""
        pairs = [
            (ItemScores.of(a.probabilities, a.labels), ItemScores.of(b.probabilities, b.labels))
            for a, b in zip(own, baseline, strict=True)
        ]
        differences = np.mean(
            [np.stack([of(a) - of(b) for of in ITEM_METRICS.values()], 1) for a, b in pairs], axis=0
        )
        own_residuals, baseline_residuals = (
            np.stack([calibration_matrix(pair[i].confidence, pair[i].correct) for pair in pairs])
            for i in (0, 1)
        )
        return cls(differences, own_residuals, baseline_residuals)

    def resampled(self, items: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
        """Return the differences in `TWO_LEVEL` on the drawn items."""
        ece = [
            np.abs(residuals[:, items].sum(1)).sum(1).mean() / len(items)
            for residuals in (self.own, self.baseline)
        ]
        return np.append(self.differences[items].mean(0), ece[0] - ece[1])


def two_level_intervals(
    tasks: Sequence[PairedItems], resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of the mean over tasks, for each of `TWO_LEVEL`.

    Tasks are drawn, then items of each drawn task.
    """
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, len(TWO_LEVEL)))
    for row in means:
        drawn = rng.integers(len(tasks), size=len(tasks))
        row[:] = np.mean(
            [
                tasks[i].resampled(rng.integers(len(tasks[i].differences), size=len(tasks[i].differences)))
                for i in drawn
            ],
            axis=0,
        )
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(TWO_LEVEL)}


def paired_differences(
    own: Mapping[str, Mapping[str, float]],
    baseline: Mapping[str, Mapping[str, float]],
    items: Sequence[PairedItems],
    metrics: Sequence[str],
    resamples: int,
) -> dict[str, Difference]:
    """Return the differences by metric, on the tasks that both methods have.

    `own` and `baseline` have each task's values: task -> metric -> value. `items` are the same
    tasks item by item; without them all intervals resample tasks alone.
    """
    shared = [task for task in own if task in baseline]
    intervals = two_level_intervals(items, resamples) if items else {}
    found = {}
    for metric in metrics:
        values = [own[task][metric] - baseline[task][metric] for task in shared]
        low, high = intervals.get(metric) or task_interval(values, resamples)
        over = "tasks and items" if metric in intervals else "tasks"
        found[metric] = Difference(Estimate.of(values), low, high, over)
    return found
