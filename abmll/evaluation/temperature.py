"""Temperature scaling (Guo et al. 2017) of kept answers: p^(1/T), normalised, T fitted on tasks that are not tested.

It is applied to the averaged distribution, and needs no model. T goes with the number of support examples (`Rule`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize

from abmll.errors import AbmllError
from abmll.evaluation.metrics import Scored
from abmll.evaluation.records import CellResult, Floats
from abmll.uncertainty import temperature_after, tempered

# Of T after 16 examples, and of the exponent.
LIMITS = ((0.05, 20.0), (-2.0, 2.0))


@dataclass(frozen=True)
class Rule:
    """T by the number of support examples: see `uncertainty.temperature_after`."""

    temperature: float = 1.0
    exponent: float = 0.0

    def after(self, examples: int) -> float:
        """T for a posterior that was adapted to so many."""
        return temperature_after(examples, self.temperature, self.exponent)


def scaled(probabilities: Floats, temperature: float) -> Floats:
    """`probabilities` [n, C] at the temperature, as a prediction is served at it; zeros (no such option) stay zero."""
    result: Floats = tempered(torch.from_numpy(probabilities), temperature).numpy()
    return result


def fit_temperature(validation: Sequence[CellResult]) -> Rule:
    """The rule within `LIMITS` of least NLL on the validation cells, each of which counts alike.

    Where all supports are of one size the exponent is 0. Raises `AbmllError` without cells.
    """
    if not validation:
        raise AbmllError("a temperature is fitted on validation tasks: name some")

    def loss(values: Sequence[float]) -> float:
        rule = _rule(values)
        cells = [
            Scored.of(scaled(cell.probabilities, rule.after(cell.support_size)), cell.labels).nll.mean()
            for cell in validation
        ]
        return float(np.mean(cells))

    (low, high), exponents = LIMITS
    several = len({cell.support_size for cell in validation}) > 1
    bounds = [(math.log(low), math.log(high)), *([exponents] if several else [])]
    found = minimize(
        loss,
        np.zeros(len(bounds)),
        method="Nelder-Mead",
        bounds=bounds,
        options={"xatol": 1e-4, "fatol": 1e-7},
    )
    return _rule(found.x)


def _rule(values: Sequence[float]) -> Rule:
    log_temperature, *exponent = map(float, values)
    return Rule(math.exp(log_temperature), *exponent)


def with_temperature(result: CellResult, rule: Rule, method: str) -> CellResult:
    """`result` with its answers scaled, under the name `method`. The information is of the samples, and stays."""
    temperature = rule.after(result.support_size)
    return replace(
        result,
        cell=replace(result.cell, method=method),
        probabilities=scaled(result.probabilities, temperature),
        foreign_probabilities=scaled(result.foreign_probabilities, temperature),
    )
