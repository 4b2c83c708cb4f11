"""From cells to what is said of an arm: means with intervals, a paired difference, what it costs.

A question of a collection is one value: the mean over the seeds. Intervals are of 95 %, by
resampling questions (bootstrap, percentiles).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from benchmarks.decisions.arms import Cost
from benchmarks.decisions.cells import Cell
from benchmarks.decisions.collections import Decisions
from benchmarks.decisions.measures import Measured
from lab.evaluation.statistics import task_interval

RESAMPLES = 2000
Values: TypeAlias = Mapping[tuple[str, str], float]
"""A number by collection and question."""


@dataclass(frozen=True)
class Interval:
    """A mean over questions, and its interval; nan without values."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        """Take the mean of a value a question; one of nan, where it is not known, is left out."""
        known = [value for value in values if not math.isnan(value)]
        mean = float(np.mean(known)) if known else math.nan
        return cls(mean, *task_interval(known, RESAMPLES))

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def by_question(
    cells: Sequence[Cell], collections: Mapping[str, Decisions], number: Callable[[Measured], float]
) -> Values:
    """Return a number by collection and question, each the mean over the cells that know it."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in cells:
        name = cell.key.collection
        for question, measured in cell.measured(collections[name]).items():
            found[name, question].append(number(measured))
    return {key: _mean(values) for key, values in found.items()}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def difference(one: Values, other: Values) -> Interval:
    """Return the mean of one less the other, question by question."""
    return Interval.of(one[key] - other[key] for key in one if key in other)


def paired(one: Sequence[Cell], other: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Return the cells of both whose collection, cases and seed the other has too."""

    def of(cells: Sequence[Cell]) -> dict[tuple[object, ...], Cell]:
        return {(cell.key.collection, *cell.key[2:]): cell for cell in cells}

    left, right = of(one), of(other)
    both = [key for key in left if key in right]
    return [left[key] for key in both], [right[key] for key in both]


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    return sum(costs, Cost())
