"""When to stop sampling: when the Monte Carlo error no longer matters for a prediction.

The interval around a running mean is an asymptotic confidence sequence (Waudby-Smith, Arbour,
Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences",
2024, theorem 2.2), so it may be looked at after every sample. Being asymptotic, it is widened for
few samples by the ratio of Student's quantile to the normal one.
`tests/abmll/prediction/test_stopping.py` measures its coverage at our numbers of samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from abmll.prediction.settings import Thresholds
from abmll.prediction.uncertainty import jackknife_information, pooled_values

# Fewer samples settle nothing: their variance is too uncertain.
FEWEST_SAMPLES = 8
# The sequence is tightest after this many blocks.
TIGHTEST_BLOCKS = 8
# Student's 97.5 % quantile divided by the normal one, by degrees of freedom from 1; beyond the
# table the ratio is below 1.08. K blocks count as K - 2 degrees: with K - 1, the interval missed in
# 6.9 % of sequences of bimodal samples instead of 5 %.
_WIDENING = (6.48, 2.20, 1.62, 1.42, 1.31, 1.25, 1.21, 1.18, 1.15, 1.14, 1.12, 1.11, 1.10, 1.09, 1.09, 1.08)


@dataclass(frozen=True)
class StopRule:
    """When a prediction is settled.

    That is when its confidence is known to +-`tolerance`, or `thresholds` are decided. Only
    thresholds on confidence, margin and mutual information can end the sampling. `alpha` is the
    probability that an interval ever misses.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    tolerance: float = 0.02
    alpha: float = 0.05


def half_width(values: Tensor, alpha: float) -> float:
    """Return half the width of the confidence sequence of the mean of `values` [K].

    It is valid at all K together (asymptotically).
    """
    count = len(values)
    if count < 2:
        return math.inf
    return float(values.std(unbiased=True)) * _multiplier(count, alpha)


def _multiplier(count: int, alpha: float) -> float:
    """Return the half-width after `count` values with standard deviation 1."""
    spread = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / TIGHTEST_BLOCKS  # rho^2
    scaled = count * spread + 1
    bound = math.sqrt(2 * scaled / (count**2 * spread) * math.log(math.sqrt(scaled) / alpha))
    return bound * _WIDENING[min(max(count - 3, 0), len(_WIDENING) - 1)]


def settled(probabilities: Tensor, rule: StopRule, *, paired: bool, temperature: float = 1.0) -> bool:
    """Return whether sampled distributions [S, C] suffice for their average at `temperature`.

    `paired` samples 2k and 2k + 1 are antithetic, and count as one.
    """
    if len(probabilities) < FEWEST_SAMPLES:
        return False
    blocks = pooled_values(probabilities.double(), temperature, paired=paired)
    mean = blocks.mean(0)
    top, second = torch.topk(mean, 2).indices.tolist() if len(mean) > 1 else (0, 0)
    confidence, margin = blocks[:, top], blocks[:, top] - blocks[:, second]
    if len(mean) == 1:
        margin = confidence
    error, margin_error = half_width(confidence, rule.alpha), half_width(margin, rule.alpha)
    answer_sure = float(margin.mean()) > margin_error
    if error <= rule.tolerance and (answer_sure or margin_error <= 2 * rule.tolerance):
        return True
    verdicts, thresholds = [], rule.thresholds
    if thresholds.min_confidence is not None:
        verdicts.append(_side(float(confidence.mean()), error, thresholds.min_confidence))
    if thresholds.min_margin is not None:
        verdicts.append(_side(float(margin.mean()), margin_error, thresholds.min_margin))
    if thresholds.max_mutual_information is not None:
        information, standard_error = jackknife_information(probabilities.double(), paired=paired)
        width = standard_error * math.sqrt(len(blocks)) * _multiplier(len(blocks), rule.alpha)
        verdicts.append(_side(-information, width, -thresholds.max_mutual_information))
    if not verdicts:
        return False
    # One threshold that is surely not met settles an abstention. To answer, all thresholds must
    # surely be met, and the top option must surely be the top one.
    return -1 in verdicts or (answer_sure and all(verdict == 1 for verdict in verdicts))


def _side(value: float, error: float, threshold: float) -> int:
    """Return 1 if `value` is surely at least `threshold`, -1 if it is surely below, else 0."""
    if value - error >= threshold:
        return 1
    return -1 if value + error < threshold else 0
