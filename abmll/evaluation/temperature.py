"""Temperature scaling (Guo et al. 2017) of kept answers: p^(1/T), normalised, T fitted on tasks that are not tested.

It is applied to the averaged distribution, and needs no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from abmll.errors import AbmllError
from abmll.evaluation.metrics import Scored
from abmll.evaluation.records import CellResult, Floats
from abmll.uncertainty import tempered

LIMITS = (0.05, 20.0)


def scaled(probabilities: Floats, temperature: float) -> Floats:
    """`probabilities` [n, C] at the temperature, as a prediction is served at it; zeros (no such option) stay zero."""
    result: Floats = tempered(torch.from_numpy(probabilities), temperature).numpy()
    return result


def fit_temperature(validation: Sequence[CellResult]) -> float:
    """The T within `LIMITS` of least NLL on the validation cells, each of which counts alike. Raises `AbmllError` without."""
    if not validation:
        raise AbmllError("a temperature is fitted on validation tasks: name some")

    def loss(log_temperature: float) -> float:
        cells = [
            Scored.of(scaled(cell.probabilities, math.exp(log_temperature)), cell.labels).nll.mean()
            for cell in validation
        ]
        return float(np.mean(cells))

    found = minimize_scalar(loss, bounds=tuple(map(math.log, LIMITS)), method="bounded")
    return math.exp(float(found.x))


def with_temperature(result: CellResult, temperature: float, method: str) -> CellResult:
    """`result` with its answers scaled, under the name `method`. The information is of the samples, and stays."""
    return replace(
        result,
        cell=replace(result.cell, method=method),
        probabilities=scaled(result.probabilities, temperature),
        foreign_probabilities=scaled(result.foreign_probabilities, temperature),
    )
