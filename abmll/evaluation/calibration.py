"""Fitting a calibrator across tasks: a logistic model whose penalty is chosen by leaving one task out.

Every task counts alike, however many items it has. An item whose adapter was estimated on held-out examples counts half
with that estimate and half without, so that the calibrator holds for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from abmll.calibrator import FEATURES, Calibrator
from abmll.errors import AbmllError
from abmll.evaluation.records import Floats

# scikit-learn's C, the inverse of the penalty on standardised features: from nearly constant to nearly free.
STRENGTHS = tuple(float(10**power) for power in range(-4, 3))
_KNOWN, _UNKNOWN = FEATURES.index("held_out_logit"), FEATURES.index("held_out_unknown")


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


def fit_pipeline(items: Items, weights: Floats, strength: float) -> Pipeline:
    """A logistic model on standardised features; `strength` is scikit-learn's C."""
    model = LogisticRegression(C=strength, max_iter=1000)
    pipeline = make_pipeline(StandardScaler(), model)
    pipeline.fit(
        items.features,
        items.correct,
        standardscaler__sample_weight=weights,
        logisticregression__sample_weight=weights,
    )
    return pipeline


def task_losses(items: Items, weights: Floats, strength: float) -> Floats:
    """NLL in nats of each task's items under a model fitted to the other tasks, one value a task."""
    losses = []
    for task in np.unique(items.tasks):
        own = items.tasks == task
        kept = Items(items.features[~own], items.correct[~own], items.tasks[~own])
        if len(set(kept.correct)) < 2:
            raise AbmllError(f"without {task} all answers are alike: nothing to fit")
        found = fit_pipeline(kept, weights[~own], strength).predict_proba(items.features[own])
        losses.append(log_loss(items.correct[own], found, labels=[0, 1], sample_weight=weights[own]))
    return np.array(losses)


def choose_strength(items: Items, weights: Floats) -> tuple[float, dict[float, float]]:
    """The C of least NLL on left-out tasks, and the mean NLL over tasks by C."""
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
    intercept, coefficients = unstandardised(fit_pipeline(doubled, weights, strength))
    fitted = {
        "tasks": [str(name) for name in names],
        "items": len(items.correct),
        "strength": strength,
        "left_out_task_nll": round(losses[strength], 6),
        **about,
    }
    return Calibrator(
        posterior_digest,
        intercept,
        dict(zip(FEATURES, map(float, coefficients), strict=True)),
        fewest_samples,
        fitted,
    )


def unstandardised(pipeline: Pipeline) -> tuple[float, Floats]:
    """Intercept and coefficients of the logistic model on the features as they are."""
    scaler, model = pipeline[0], pipeline[1]
    coefficients: Floats = model.coef_[0] / scaler.scale_
    return float(model.intercept_[0] - coefficients @ scaler.mean_), coefficients


def confidence_falls(calibrator: Calibrator, options: int, support_size: int = 16) -> bool:
    """Whether a more probable answer is ever called less sure, all else being what that probability implies.

    The path goes from equal probabilities of all `options` to near certainty, the rest shared equally, without mutual
    information and without a held-out estimate.
    """
    log_options, last = math.log(options), 0.0
    for top in np.linspace(1 / options, 0.999, 200)[1:]:
        rest = (1 - top) / (options - 1)
        entropy = -top * math.log(top) - (1 - top) * math.log(rest)
        row = (
            math.log(top / (1 - top)), top - rest, 0.0, entropy / log_options, log_options,
            math.log(support_size), 0.0, 1.0,
        )  # fmt: skip
        confidence = calibrator.evaluate(row)
        if confidence < last - 1e-9:
            return True
        last = confidence
    return False
