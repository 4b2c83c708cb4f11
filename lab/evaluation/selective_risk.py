"""How often a method is wrong where it answers only the items that it is most confident of.

`confidence` [n] is the probability of each answer of one cell. `correct` [n] is 1 for a right
answer, 0 for a wrong one.
"""

from __future__ import annotations

import numpy as np

from lab.evaluation.cells import Floats


def risk_curve(confidence: Floats, correct: Floats) -> Floats:
    """Return the selective risk [n]: the error among the i + 1 most confident items.

    Items of equal confidence share their mean error.
    """
    order = np.argsort(-confidence, kind="stable")
    _, group = np.unique(confidence[order], return_inverse=True)
    error = 1 - correct[order]
    shared = (np.bincount(group, weights=error) / np.bincount(group))[group]
    risk: Floats = np.cumsum(shared) / np.arange(1, len(error) + 1)
    return risk


def aurc(confidence: Floats, correct: Floats) -> float:
    """Return the area under the risk-coverage curve: the mean of `risk_curve`. Lower is better.

    Source: Geifman et al. 2019.
    """
    return float(risk_curve(confidence, correct).mean())


def coverage_at_risk(confidence: Floats, correct: Floats, risk: float) -> float:
    """Return the largest fraction of items that a threshold on confidence can answer.

    The error among them is at most `risk`. The threshold is chosen on the items that it is measured
    on: this describes the curve and guarantees nothing.
    """
    ordered = -np.sort(-confidence)
    is_cut = np.append(ordered[1:] != ordered[:-1], True)  # a threshold cannot part items that tie
    within = np.flatnonzero(is_cut & (risk_curve(confidence, correct) <= risk))
    return float((within[-1] + 1) / len(ordered)) if len(within) else 0.0
