"""Conformal prediction sets: options that hold the right one with probability 1 - alpha (split conformal, LAC).

The score of an item is 1 - p(right option) (Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded
Error Levels", 2019). With q the ceil((n + 1)(1 - alpha))-th smallest of n calibration scores, the set of all options with
1 - p <= q holds the right option of a new, exchangeable item with probability at least 1 - alpha. The probability is
over the draw of the calibration set and the item together, not for each item or each calibration set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abmll.assurance.certificates import check_level


@dataclass(frozen=True)
class ConformalQuantile:
    """`q` of `n` scores. Where n is too small for `alpha`, not `attainable`: `q` is 1, and the only valid set is every option.

    `coverage` is what is guaranteed: ceil((n + 1)(1 - alpha)) / (n + 1), or 1 for every option.
    """

    alpha: float
    n: int
    q: float
    coverage: float
    attainable: bool


def conformal_quantile(scores: Sequence[float], alpha: float) -> ConformalQuantile:
    """The quantile of calibration `scores` 1 - p(right option). Raises `ValueError` unless 0 < alpha < 1."""
    check_level("alpha", alpha)
    n = len(scores)
    rank = math.ceil(
        (n + 1) * (1 - alpha) - 1e-12
    )  # (n + 1)(1 - alpha) that is whole stays so in floating point
    if rank > n:
        return ConformalQuantile(alpha, n, 1.0, 1.0, attainable=False)
    return ConformalQuantile(alpha, n, sorted(scores)[rank - 1], rank / (n + 1), attainable=True)


def fewest_scores(alpha: float) -> int:
    """Fewest calibration items for which a set can be smaller than all options: 1 / alpha - 1, rounded up."""
    check_level("alpha", alpha)
    return math.ceil(1 / alpha - 1 - 1e-9)


def conformal_set(probabilities: Sequence[float], q: float) -> tuple[int, ...]:
    """Positions of the options in the set, most probable first: all with 1 - p <= q, and always the most probable one.

    Adding the most probable option where no option qualifies can only raise the coverage, and an empty set tells nothing.
    """
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    return tuple(i for place, i in enumerate(order) if place == 0 or 1 - probabilities[i] <= q)
