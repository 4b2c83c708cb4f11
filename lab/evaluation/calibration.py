"""Fitting a calibrator across tasks: a logistic correction of the raw confidence, shrunk towards none.

The penalty is on the distance from the raw confidence (a coefficient of 1 for the log odds of the top probability, 0 for all
else), and its strength is chosen by leaving one task out. So few tasks, or tasks that disagree, change little.

Every task counts alike, however many items it has. An item whose adapter was estimated on held-out examples counts half
with that estimate and half without, so that the calibrator holds for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from abmll.calibrator import FEATURES, Calibrator
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from abmll.errors import AbmllError
from lab.evaluation.records import Floats

# Weight of an item's loss against half the squared correction, on standardised features: from none to nearly free.
STRENGTHS = (0.0, *(float(10**power) for power in range(-5, 2)))
# A standard deviation below this is rounding: the feature is the same for all items.
CONSTANT = 1e-9
_TOP, _KNOWN, _UNKNOWN = map(FEATURES.index, ("top_logit", "held_out_logit", "held_out_unknown"))


@dataclass(frozen=True)
class Items:
    """Items of several tasks: `features` [n, len(FEATURES)], whether the answer was right [n], and whose they are [n]."""

    features: Floats
    correct: NDArray[np.int64]
    tasks: NDArray[np.str_]

    def with_and_without_held_out(self) -> tuple[Items, Floats]:
        """The items, those with a held-out estimate a second time without it; and weights [n] by which tasks count alike."""
        known = self.features[:, _UNKNOWN] == 0
        without = self.features[known].copy()
        without[:, _KNOWN], without[:, _UNKNOWN] = 0.0, 1.0
        items = Items(
            np.concatenate([self.features, without]),
            np.concatenate([self.correct, self.correct[known]]),
            np.concatenate([self.tasks, self.tasks[known]]),
        )
        share = np.concatenate([np.where(known, 0.5, 1.0), np.full(int(known.sum()), 0.5)])
        names, task = np.unique(items.tasks, return_inverse=True)
        of_task = np.bincount(task, weights=share)
        weights: Floats = share / of_task[task] * len(self.correct) / len(names)
        return items, weights


@dataclass(frozen=True)
class Logistic:
    """P(right) = sigmoid(`intercept` + features @ `coefficients`)."""

    intercept: float
    coefficients: Floats

    def log_odds(self, features: Floats) -> Floats:
        """[n] for `features` [n, len(FEATURES)]."""
        scores: Floats = self.intercept + features @ self.coefficients
        return scores


def fit_logistic(items: Items, weights: Floats, strength: float) -> Logistic:
    """Least `strength` x weighted NLL + half the squared correction of the raw confidence, on standardised features."""
    mean = np.average(items.features, axis=0, weights=weights)
    scale = np.sqrt(np.average((items.features - mean) ** 2, axis=0, weights=weights))
    scale[scale < CONSTANT] = 1.0
    inputs = np.column_stack([np.ones(len(items.features)), (items.features - mean) / scale])
    raw, signs = items.features[:, _TOP], 2 * items.correct - 1

    def loss(correction: Floats) -> tuple[float, Floats]:
        margins = signs * (raw + inputs @ correction)
        slopes = strength * weights * -expit(-margins) * signs
        value = strength * weights @ np.logaddexp(0, -margins) + correction @ correction / 2
        return float(value), inputs.T @ slopes + correction

    correction = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B", tol=1e-12).x
    coefficients: Floats = correction[1:] / scale
    intercept = float(correction[0] - coefficients @ mean)
    coefficients[_TOP] += 1
    return Logistic(intercept, coefficients)


def task_losses(items: Items, weights: Floats, strength: float) -> Floats:
    """NLL in nats of each task's items under a model fitted to the other tasks, one value a task."""
    losses = []
    for task in np.unique(items.tasks):
        own = items.tasks == task
        kept = Items(items.features[~own], items.correct[~own], items.tasks[~own])
        scores = fit_logistic(kept, weights[~own], strength).log_odds(items.features[own])
        nll = np.logaddexp(0, -(2 * items.correct[own] - 1) * scores)
        losses.append(np.average(nll, weights=weights[own]))
    return np.array(losses)


def choose_strength(items: Items, weights: Floats) -> tuple[float, dict[float, float]]:
    """The strength of least NLL on left-out tasks, and the mean NLL over tasks by strength."""
    losses = {strength: float(task_losses(items, weights, strength).mean()) for strength in STRENGTHS}
    return min(losses, key=losses.__getitem__), losses


def fit_calibrator(
    items: Items, posterior_digest: str, fewest_samples: int, about: Mapping[str, Any]
) -> Calibrator:
    """The calibrator of `items`. Raises `AbmllError` where there are fewer than two tasks, or all answers are alike."""
    names = np.unique(items.tasks)
    if len(names) < 2 or len(set(items.correct)) < 2:
        raise AbmllError("a calibrator needs right and wrong answers on at least two tasks")
    doubled, weights = items.with_and_without_held_out()
    strength, losses = choose_strength(doubled, weights)
    found = fit_logistic(doubled, weights, strength)
    fitted = {
        "tasks": [str(name) for name in names],
        "items": len(items.correct),
        "strength": strength,
        "left_out_task_nll": round(losses[strength], 6),
        "raw_nll": round(losses[0.0], 6),
        **about,
    }
    return Calibrator(
        posterior_digest,
        found.intercept,
        dict(zip(FEATURES, map(float, found.coefficients), strict=True)),
        fewest_samples,
        fitted,
    )


def confidence_falls(calibrator: Calibrator, options: int, support_size: int = 16) -> bool:
    """Whether a more probable answer is ever called less sure, all else being what that probability implies.

    The path goes from equal probabilities of all `options` to near certainty, the rest shared equally, without mutual
    information and without a held-out estimate.
    """
    log_options, last = math.log(options), 0.0
    for top in np.linspace(1 / options, 0.999, 200)[1:]:
        margin = top - (1 - top) / (options - 1)
        row = (math.log(top / (1 - top)), margin, 0.0, log_options, math.log(support_size), 0.0, 1.0)
        confidence = calibrator.evaluate(row)
        if confidence < last - 1e-9:
            return True
        last = confidence
    return False
