"""What held-out examples say about an adapter: estimates with intervals, comparisons, suspects and a verdict.

Pure: it sees labels and probabilities, never a model (docs/confidence.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.9
"""Of every interval here."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`."""

    low: float
    high: float


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a proportion, `successes` of `n` (at least 1).

    It supposes independent trials. Held-out answers share most of their training examples, so its coverage is only near
    `level`; benchmarks/results/calibrator.md measures it.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # Exactly 0 and 1 where none or all succeed; rounding must not push them out.
    low = 0.0 if successes == 0 else centre - half
    return Interval(low, 1.0 if successes == n else centre + half)
