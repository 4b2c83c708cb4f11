"""Temperature scaling (Guo et al. 2017) of kept answers: p^(1/T), normalised.

T is fitted on tasks that are not tested. It acts on the averaged distribution and needs no model. T
depends on the number of support examples, and on whether the options are fixed classes or differ
from item to item (`Rule`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize

from abmll.errors import AbmllError
from abmll.posterior.config import TemperatureRule
from abmll.prediction.uncertainty import tempered
from lab.evaluation.cells import CellResult, Floats
from lab.evaluation.metrics import ItemScores

# The ranges of T after 16 examples and of the exponent.
LIMITS = ((0.05, 20.0), (-2.0, 2.0))


@dataclass(frozen=True)
class Rule:
    """T by the number of support examples (`TemperatureRule`).

    `choice` replaces `temperature` for multiple choice; None means the same.
    """

    temperature: float = 1.0
    exponent: float = 0.0
    choice: float | None = None

    def of(self, result: CellResult) -> float:
        """Return T for the answers of a cell."""
        rule = TemperatureRule(self.temperature, self.exponent, self.choice)
        return rule.after(result.support_size, multiple_choice=not result.classes)


def scaled(probabilities: Floats, temperature: float) -> Floats:
    """Return `probabilities` [n, C] at the temperature, as a prediction is served at it.

    Zeros (the item has no such option) stay zero.
    """
    result: Floats = tempered(torch.from_numpy(probabilities), temperature).numpy()
    return result


def fit_temperature(validation: Sequence[CellResult]) -> Rule:
    """Fit the rule of least NLL on the validation cells, each of which counts alike.

    The rule lies within `LIMITS`. Its exponent is 0 where all supports are of one size, and
    `choice` is None where all tasks are of one kind. Raises `AbmllError` without cells.
    """
    if not validation:
        raise AbmllError("a temperature is fitted on validation tasks: name some")

    fitted = ["temperature"]
    if len({cell.support_size for cell in validation}) > 1:
        fitted.append("exponent")
    if len({bool(cell.classes) for cell in validation}) > 1:
        fitted.append("choice")

    def rule_of(values: Sequence[float]) -> Rule:
        named = zip(fitted, map(float, values), strict=True)
        return Rule(**{name: value if name == "exponent" else math.exp(value) for name, value in named})

    def loss(values: Sequence[float]) -> float:
        rule = rule_of(values)
        cells = [
            ItemScores.of(scaled(cell.probabilities, rule.of(cell)), cell.labels).nll.mean()
            for cell in validation
        ]
        return float(np.mean(cells))

    (low, high), exponents = LIMITS
    bounds = [exponents if name == "exponent" else (math.log(low), math.log(high)) for name in fitted]
    found = minimize(
        loss,
        np.zeros(len(bounds)),
        method="Nelder-Mead",
        bounds=bounds,
        options={"xatol": 1e-4, "fatol": 1e-7},
    )
    return rule_of(found.x)


def with_temperature(result: CellResult, rule: Rule, method: str) -> CellResult:
    """Return `result` with its answers scaled, under the name `method`.

    The mutual information is that of the samples, and stays.
    """
    temperature = rule.of(result)
    return replace(
        result,
        cell=replace(result.cell, method=method),
        probabilities=scaled(result.probabilities, temperature),
        foreign_probabilities=scaled(result.foreign_probabilities, temperature),
    )
