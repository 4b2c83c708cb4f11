"""Metrics of one cell, from the probabilities of its items and their labels.

Accuracy, NLL (nats), Brier (the sum over options, not halved) and the mean |confidence - correctness| (what the ABMLL
paper calls ECE) are means over items. The others belong to the set. Confidence is the probability of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr
from scipy.stats import norm
from sklearn.metrics import f1_score, roc_auc_score

from lab.evaluation.records import CellResult, Floats

BINS = 15
# A probability below this counts as this in the NLL, so that one rounded-off answer cannot make it infinite.
SMALLEST_PROBABILITY = 1e-12
SIMULATIONS = 1000


@dataclass(frozen=True)
class HeldOutAnswer:
    """Items of one cell as metrics see them: confidence and correctness [n], and what a mean over items is taken of."""

    confidence: Floats
    correct: Floats
    nll: Floats
    brier: Floats

    @classmethod
    def of(cls, probabilities: Floats, labels: NDArray[np.int64]) -> HeldOutAnswer:
        """From distributions [n, C], filled up with zeros where an item has fewer options, and labels [n]."""
        chosen = probabilities[np.arange(len(labels)), labels]
        # Sum over options of (p - [is the label])^2, without building the indicator.
        brier = (probabilities**2).sum(1) - 2 * chosen + 1
        return cls(
            confidence=probabilities.max(1),
            correct=(probabilities.argmax(1) == labels).astype(float),
            nll=-np.log(np.maximum(chosen, SMALLEST_PROBABILITY)),
            brier=brier,
        )

    @property
    def gap(self) -> Floats:
        """|confidence - correctness| of each item."""
        return np.abs(self.confidence - self.correct)


def calibration_matrix(confidence: Floats, correct: Floats, bins: int = BINS) -> Floats:
    """[n, bins + 1]: an item's confidence less its correctness, in the column of its bin [b / bins, (b + 1) / bins).

    A confidence of exactly 1 has the last column to itself, as in torchmetrics, so that numbers compare with papers' own.
    """
    matrix = np.zeros((len(confidence), bins + 1))
    column = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right") - 1
    matrix[np.arange(len(confidence)), np.clip(column, 0, bins)] = confidence - correct
    return matrix


def expected_calibration_error(confidence: Floats, correct: Floats, bins: int = BINS) -> float:
    """ECE over equal-width bins: sum over bins of |sum of (confidence - correctness)| / n (Guo et al. 2017)."""
    return float(np.abs(calibration_matrix(confidence, correct, bins).sum(0)).sum() / len(confidence))


def calibrated_ece(confidence: Floats, bins: int = BINS, seed: int = 0) -> float:
    """The ECE that a perfectly calibrated model with these confidences would have on average: labels are drawn from them.

    It is not zero: |.| of a mean over few items never is. Report it next to the ECE.
    """
    draws = np.random.default_rng(seed).random((SIMULATIONS, len(confidence))) < confidence
    own_bin = calibration_matrix(
        confidence, confidence - 1, bins
    )  # a residual of 1: the indicator of each item's bin
    return float(np.abs((confidence - draws) @ own_bin).sum(1).mean() / len(confidence))


def smooth_ece(confidence: Floats, correct: Floats) -> float:
    """smECE of Błasiok and Nakkiran (2023, arXiv 2309.12236): |residual| smoothed by a reflected Gaussian, over [0, 1].

    The bandwidth is the one at which it equals the error itself, found by halving as the reference library `relplot` does
    (10 halvings, not below 0.001). `relplot` itself is not used: its licence is Apple's own, and it brings a plotting stack.
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
    """Integral over t in [0, 1] of |mean_i K(t, c_i) (c_i - correct_i)|, K Gaussian with its mass outside reflected back in."""
    t = np.linspace(0, 1, max(200, round(10 / width)))
    # Items with one confidence act as one point, which is most of the work saved for coarse probabilities.
    points, where = np.unique(confidence, return_inverse=True)
    residual = np.bincount(where, weights=confidence - correct) / len(confidence)
    mass = np.bincount(where) / len(confidence)
    reach = int(np.ceil(4 * width / 2)) + 1
    kernel = np.zeros((len(t), len(points)))
    for shift in range(-reach, reach + 1):
        kernel += norm.pdf(t[:, None], points + 2 * shift, width)
        kernel += norm.pdf(t[:, None], 2 * shift - points, width)
    return float(np.abs(kernel @ residual).sum() / (kernel @ mass).sum())


def risk_curve(confidence: Floats, correct: Floats) -> Floats:
    """Selective risk [n]: the error among the i + 1 most confident items. Items that tie share their mean error."""
    order = np.argsort(-confidence, kind="stable")
    _, group = np.unique(confidence[order], return_inverse=True)
    error = 1 - correct[order]
    shared = (np.bincount(group, weights=error) / np.bincount(group))[group]
    risk: Floats = np.cumsum(shared) / np.arange(1, len(error) + 1)
    return risk


def aurc(confidence: Floats, correct: Floats) -> float:
    """Area under the risk-coverage curve: the mean of `risk_curve` (Geifman et al. 2019). Lower is better."""
    return float(risk_curve(confidence, correct).mean())


def coverage_at_risk(confidence: Floats, correct: Floats, risk: float) -> float:
    """The largest share of items that a threshold on confidence can answer with an error of at most `risk`.

    It is chosen on the items it is measured on: a description of the curve, not a guarantee.
    """
    ordered = -np.sort(-confidence)
    is_cut = np.append(ordered[1:] != ordered[:-1], True)  # a threshold cannot part items that tie
    within = np.flatnonzero(is_cut & (risk_curve(confidence, correct) <= risk))
    return float((within[-1] + 1) / len(ordered)) if len(within) else 0.0


def auroc(own: Floats, foreign: Floats) -> float:
    """How well a score tells another task's items (high) from the task's own; nan where either has none."""
    if not len(own) or not len(foreign) or np.isnan(own).any() or np.isnan(foreign).any():
        return float("nan")
    return float(
        roc_auc_score(np.r_[np.zeros(len(own)), np.ones(len(foreign))], np.concatenate([own, foreign]))
    )


def macro_f1(result: CellResult) -> float:
    """Unweighted mean of the F1 of the classes that occur or are answered; nan for multiple choice, which has no classes."""
    if not result.classes:
        return float("nan")
    answers = result.probabilities.argmax(1)
    return float(f1_score(result.labels, answers, average="macro", zero_division=0))


# Means over items, by name: what a bootstrap over items is taken of.
ITEM_METRICS: dict[str, Callable[[HeldOutAnswer], Floats]] = {
    "accuracy": lambda s: s.correct,
    "nll": lambda s: s.nll,
    "brier": lambda s: s.brier,
    "mean_abs_calibration_gap": lambda s: s.gap,
}
METRICS = (
    "accuracy", "macro_f1", "nll", "brier", "ece15", "ece15_if_calibrated", "smooth_ece", "mean_abs_calibration_gap", "aurc",
    "coverage_at_5", "coverage_at_10", "ood_auroc_information", "ood_auroc_entropy",
)  # fmt: skip
HIGHER_IS_BETTER = {
    "accuracy",
    "macro_f1",
    "coverage_at_5",
    "coverage_at_10",
    "ood_auroc_information",
    "ood_auroc_entropy",
}


def evaluate(result: CellResult) -> dict[str, float]:
    """All of `METRICS` for one cell; nan where one does not apply."""
    scored = HeldOutAnswer.of(result.probabilities, result.labels)
    confidence, correct = scored.confidence, scored.correct
    return {name: float(values(scored).mean()) for name, values in ITEM_METRICS.items()} | {
        "macro_f1": macro_f1(result),
        "ece15": expected_calibration_error(confidence, correct),
        "ece15_if_calibrated": calibrated_ece(confidence),
        "smooth_ece": smooth_ece(confidence, correct),
        "aurc": aurc(confidence, correct),
        "coverage_at_5": coverage_at_risk(confidence, correct, 0.05),
        "coverage_at_10": coverage_at_risk(confidence, correct, 0.10),
        "ood_auroc_information": auroc(result.mutual_information, result.foreign_information),
        "ood_auroc_entropy": auroc(
            entr(result.probabilities).sum(1), entr(result.foreign_probabilities).sum(1)
        ),
    }
