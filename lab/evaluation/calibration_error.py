"""How far confidences are from how often answers are right, over the items of one cell.

`confidence` [n] is the probability of each answer. `correct` [n] is 1 for a right answer, 0 for a
wrong one.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from lab.evaluation.cells import Floats

BINS = 15
SIMULATIONS = 1000


def calibration_matrix(confidence: Floats, correct: Floats, bins: int = BINS) -> Floats:
    """Return [n, bins + 1]: confidence less correctness of each item, in the column of its bin.

    Bin b is [b / bins, (b + 1) / bins). A confidence of exactly 1 has the last column to itself, as
    in torchmetrics, so that numbers compare with those of papers.
    """
    matrix = np.zeros((len(confidence), bins + 1))
    column = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right") - 1
    matrix[np.arange(len(confidence)), np.clip(column, 0, bins)] = confidence - correct
    return matrix


def expected_calibration_error(confidence: Floats, correct: Floats, bins: int = BINS) -> float:
    """Return the ECE over bins of equal width (Guo et al. 2017).

    It is the sum over bins of |sum of (confidence - correctness)|, divided by n.
    """
    return float(np.abs(calibration_matrix(confidence, correct, bins).sum(0)).sum() / len(confidence))


def calibrated_ece(confidence: Floats, bins: int = BINS, seed: int = 0) -> float:
    """Return the mean ECE of a perfectly calibrated model with these confidences.

    Its labels are drawn from the confidences `SIMULATIONS` times. The result is not zero, since the
    absolute mean over few items never is: report it next to the ECE.
    """
    draws = np.random.default_rng(seed).random((SIMULATIONS, len(confidence))) < confidence
    # Residuals of 1 make the matrix an indicator of each item's bin.
    own_bin = calibration_matrix(confidence, confidence - 1, bins)
    return float(np.abs((confidence - draws) @ own_bin).sum(1).mean() / len(confidence))


def smooth_ece(confidence: Floats, correct: Floats) -> float:
    """Return smECE (Błasiok and Nakkiran 2023, arXiv 2309.12236).

    It is the integral over [0, 1] of |residual|, smoothed by a reflected Gaussian. The bandwidth is
    the one at which it equals the error itself. It is found by 10 halvings and is not below 0.001,
    as in the reference library `relplot`, which is not used here: its licence is Apple's own, and
    it brings a plotting stack.
    """
    low, high = 0.0, 1.0
    if _smoothed(confidence, correct, high) > high:
        return _smoothed(confidence, correct, high)
    width = 1.0
    for _ in range(10):
        middle = (low + high) / 2
        if middle < 0.001 or middle < _smoothed(confidence, correct, middle):
            low = middle
        else:
            high = width = middle
    return _smoothed(confidence, correct, width)


def _smoothed(confidence: Floats, correct: Floats, width: float) -> float:
    """Return the integral over t in [0, 1] of |mean_i K(t, c_i) (c_i - correct_i)|.

    K is a Gaussian of standard deviation `width`, whose mass outside [0, 1] is reflected back in.
    """
    t = np.linspace(0, 1, max(200, round(10 / width)))
    # Items of equal confidence act as one point, which saves most of the work where values are few.
    points, where = np.unique(confidence, return_inverse=True)
    residual = np.bincount(where, weights=confidence - correct) / len(confidence)
    mass = np.bincount(where) / len(confidence)
    reach = int(np.ceil(4 * width / 2)) + 1
    kernel = np.zeros((len(t), len(points)))
    for shift in range(-reach, reach + 1):
        kernel += norm.pdf(t[:, None], points + 2 * shift, width)
        kernel += norm.pdf(t[:, None], 2 * shift - points, width)
    return float(np.abs(kernel @ residual).sum() / (kernel @ mass).sum())
