"""Metrics of one cell, from the probabilities of its items and their labels.

Means over items are accuracy, NLL (nats), Brier (the sum over options, not halved) and the mean
|confidence - correctness| (which the ABMLL paper calls ECE). The other metrics belong to the set of
items. Confidence is the probability of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr
from sklearn.metrics import f1_score, roc_auc_score

from lab.evaluation.calibration_error import calibrated_ece, expected_calibration_error, smooth_ece
from lab.evaluation.cells import CellResult, Floats
from lab.evaluation.selective_risk import aurc, coverage_at_risk

# The NLL takes no probability to be below this: one that was rounded to 0 would make it infinite.
SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class ItemScores:
    """What metrics need of each item: its confidence, its correctness, its NLL, its Brier score.

    All are [n]. Correctness is 1 or 0, and the NLL is in nats.
    """

    confidence: Floats
    correct: Floats
    nll: Floats
    brier: Floats

    @classmethod
    def of(cls, probabilities: Floats, labels: NDArray[np.int64]) -> ItemScores:
        """Score distributions [n, C] against labels [n].

        An item with fewer options has zeros in the columns that it lacks.
        """
        chosen = probabilities[np.arange(len(labels)), labels]
        # The sum over options of (p - [is the label])^2, without building the indicator.
        brier = (probabilities**2).sum(1) - 2 * chosen + 1
        return cls(
            confidence=probabilities.max(1),
            correct=(probabilities.argmax(1) == labels).astype(float),
            nll=-np.log(np.maximum(chosen, SMALLEST_PROBABILITY)),
            brier=brier,
        )

    @property
    def gap(self) -> Floats:
        """Return |confidence - correctness| of each item."""
        return np.abs(self.confidence - self.correct)


def auroc(own: Floats, foreign: Floats) -> float:
    """Return how well a score tells another task's items (high) from the task's own.

    It is nan where either has no items or no scores.
    """
    if not len(own) or not len(foreign) or np.isnan(own).any() or np.isnan(foreign).any():
        return float("nan")
    return float(
        roc_auc_score(np.r_[np.zeros(len(own)), np.ones(len(foreign))], np.concatenate([own, foreign]))
    )


def macro_f1(result: CellResult) -> float:
    """Return the unweighted mean of F1 over the classes that occur or are answered.

    It is nan for multiple choice, which has no classes.
    """
    if not result.classes:
        return float("nan")
    answers = result.probabilities.argmax(1)
    return float(f1_score(result.labels, answers, average="macro", zero_division=0))


# Metrics that are means over items, which a bootstrap can resample.
ITEM_METRICS: dict[str, Callable[[ItemScores], Floats]] = {
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
    """Return all of `METRICS` for one cell; nan where one does not apply."""
    scored = ItemScores.of(result.probabilities, result.labels)
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
