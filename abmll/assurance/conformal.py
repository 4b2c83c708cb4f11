"""Conformal prediction sets: options that hold the right one with probability 1 - alpha.

This is split conformal prediction with the score 1 - p(right option), called LAC (Sadinle, Lei and
Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", 2019). Let q be the
ceil((n + 1)(1 - alpha))-th smallest of n calibration scores. The set of all options with 1 - p <= q
holds the right option of a new, exchangeable item with probability at least 1 - alpha. The
probability is over the draw of calibration items and new item together. It is not a probability for
each item, nor for each set of calibration items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abmll.assurance.certificates import check_level


@dataclass(frozen=True)
class ConformalQuantile:
    """Quantile `q` of `n` calibration scores.

    Where n is too small for `alpha`, `attainable` is False and `q` is 1: the only valid set is that
    of all options. `coverage` is what is guaranteed: ceil((n + 1)(1 - alpha)) / (n + 1), or 1 for
    all options.
    """

    alpha: float
    n: int
    q: float
    coverage: float
    attainable: bool


def conformal_quantile(scores: Sequence[float], alpha: float) -> ConformalQuantile:
    """Return the quantile of calibration `scores` 1 - p(right option).

    Raises `ValueError` unless `alpha` lies strictly between 0 and 1.
    """
    check_level("alpha", alpha)
    n = len(scores)
    # 1e-12: a product that is a whole number stays one in floating point.
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-12)
    if rank > n:
        return ConformalQuantile(alpha, n, 1.0, 1.0, attainable=False)
    return ConformalQuantile(alpha, n, sorted(scores)[rank - 1], rank / (n + 1), attainable=True)


def fewest_scores(alpha: float) -> int:
    """Return the fewest calibration items for which a set can be smaller than all options.

    It is 1 / alpha - 1, rounded up.
    """
    check_level("alpha", alpha)
    return math.ceil(1 / alpha - 1 - 1e-9)


def conformal_set(probabilities: Sequence[float], q: float) -> tuple[int, ...]:
    """Return the positions of the options in the set, most probable first: all with 1 - p <= q.

    The most probable option is always in it. Adding it where no option qualifies can only raise the
    coverage, and an empty set tells a caller nothing.
    """
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    return tuple(i for place, i in enumerate(order) if place == 0 or 1 - probabilities[i] <= q)
