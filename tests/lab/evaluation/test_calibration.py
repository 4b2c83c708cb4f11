"""Fitting on synthetic tasks whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from abmll.calibrator import FEATURES, Calibrator
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from abmll.errors import AbmllError
from lab.evaluation.calibration import (
    STRENGTHS,
    Items,
    choose_strength,
    confidence_falls,
    fit_calibrator,
    fit_logistic,
)

TRUE = dict(zip(FEATURES, (0.5, 0.8, -1.0, 0.2, 0.3, 0.4, 0.0), strict=True))
INTERCEPT = -1.2


def synthetic(tasks: int = 8, size: int = 250, seed: int = 0, known: bool = True) -> Items:
    """Overconfident answers: the log odds of being right are half those of the top probability, and more."""
    rng = np.random.default_rng(seed)
    n = tasks * size
    top = rng.uniform(0.51, 0.999, n)
    held_out = np.repeat(rng.normal(0.8, 1.0, tasks), size) if known else np.zeros(n)
    rows = np.column_stack([
        np.log(top / (1 - top)), rng.uniform(0, 1, n), rng.uniform(0, 0.5, n),
        np.repeat(np.log(rng.integers(2, 9, tasks)), size), np.log(rng.choice([4, 8, 16, 32], n)),
        held_out, np.full(n, 0.0 if known else 1.0),
    ])  # fmt: skip
    score = INTERCEPT + rows @ np.array(list(TRUE.values()))
    correct = (rng.uniform(size=n) < 1 / (1 + np.exp(-score))).astype(np.int64)
    return Items(rows, correct, np.repeat([f"task {i}" for i in range(tasks)], size))


def brier(confidence: np.ndarray, correct: np.ndarray) -> float:
    return float(((confidence - correct) ** 2).mean())


def evaluate(calibrator: Calibrator, items: Items) -> np.ndarray:
    return np.array([calibrator.evaluate(tuple(row)) for row in items.features])


def test_the_true_coefficients_are_recovered() -> None:
    items = synthetic(tasks=4, size=4000, known=False)
    calibrator = fit_calibrator(items, "d" * 64, 8, {})
    for name in ("top_logit", "margin", "mutual_information", "log_support"):
        assert calibrator.coefficients[name] == pytest.approx(TRUE[name], abs=0.12), name
    assert calibrator.coefficients["held_out_logit"] == 0


def test_serving_evaluates_what_was_fitted() -> None:
    items = synthetic(size=80)
    doubled, weights = items.with_and_without_held_out()
    strength, _ = choose_strength(doubled, weights)
    expected = expit(fit_logistic(doubled, weights, strength).log_odds(items.features))
    found = evaluate(fit_calibrator(items, "d" * 64, 8, {}), items)
    assert found == pytest.approx(expected, abs=1e-12)


def test_nearly_free_it_is_what_scikit_learn_fits_without_a_penalty() -> None:
    items, weights = synthetic(known=False), np.ones(2000)
    varying = items.features.std(0) > 0
    reference = LogisticRegression(C=np.inf, max_iter=10_000, tol=1e-10)
    reference.fit(items.features[:, varying], items.correct)
    found = fit_logistic(items, weights, 1e8)
    assert found.coefficients[varying] == pytest.approx(reference.coef_[0], abs=2e-3)


def test_without_evidence_it_is_the_raw_confidence() -> None:
    items = synthetic(size=50)
    found = fit_logistic(items, np.ones(400), 0.0)
    assert found.intercept == 0
    assert found.log_odds(items.features) == pytest.approx(items.features[:, 0])


def test_tasks_that_disagree_leave_the_raw_confidence() -> None:
    """Half of the tasks are always right and half always wrong, whatever the confidence: no correction helps a new one."""
    items = synthetic(tasks=8, size=40)
    features = items.features.copy()
    features[:, 0] = np.where(np.arange(320) % 2, 0.3, -0.3)
    contrary = Items(features, (np.arange(320) // 40 % 2).astype(np.int64), items.tasks)
    assert choose_strength(contrary, np.ones(320))[0] <= 1e-3


def test_new_tasks_are_better_calibrated_than_by_the_top_probability_and_best_with_the_held_out_estimate() -> (
    None
):
    calibrator, new = fit_calibrator(synthetic(), "d" * 64, 8, {}), synthetic(seed=1)
    without = replace(new, features=new.features.copy())
    without.features[:, -2:] = (0.0, 1.0)
    raw = brier(1 / (1 + np.exp(-new.features[:, 0])), new.correct)
    known, unknown = (brier(evaluate(calibrator, items), new.correct) for items in (new, without))
    assert known < unknown < raw - 0.005


def test_tasks_count_alike_and_so_do_both_versions_of_an_item() -> None:
    items = synthetic(tasks=3, size=20)
    fewer = Items(items.features[:30], items.correct[:30], items.tasks[:30])
    fewer.features[20:, -2:] = (0.0, 1.0)  # of the second task nothing is known
    doubled, weights = fewer.with_and_without_held_out()
    assert len(weights) == 20 * 2 + 10
    totals = [weights[doubled.tasks == f"task {i}"].sum() for i in range(2)]
    assert totals == pytest.approx([15, 15])
    assert weights[:20] == pytest.approx(weights[30:])
    assert (doubled.features[30:, -2:] == (0.0, 1.0)).all()


def test_the_strength_is_that_of_least_loss_on_left_out_tasks() -> None:
    doubled, weights = synthetic().with_and_without_held_out()
    chosen, losses = choose_strength(doubled, weights)
    assert list(losses) == list(STRENGTHS)
    assert chosen == min(losses, key=losses.__getitem__) >= 0.01


def test_too_little_is_refused() -> None:
    items = synthetic(tasks=1)
    with pytest.raises(AbmllError, match="two tasks"):
        fit_calibrator(items, "d" * 64, 8, {})
    with pytest.raises(AbmllError, match="right and wrong"):
        fit_calibrator(replace(synthetic(), correct=np.ones(2000, dtype=np.int64)), "d" * 64, 8, {})


@pytest.mark.parametrize(("slope", "falls"), [(1.0, False), (-1.0, True)])
def test_a_confidence_that_falls_with_the_top_probability_is_noticed(slope: float, falls: bool) -> None:
    values = dict.fromkeys(FEATURES, 0.0) | {"top_logit": slope}
    for options in (2, 5):
        assert confidence_falls(Calibrator("d", 0.0, values, 8, {}), options) is falls


def test_the_margin_alone_can_make_confidence_fall() -> None:
    values = dict.fromkeys(FEATURES, 0.0) | {"margin": -3.0}
    assert confidence_falls(Calibrator("d", 0.0, values, 8, {}), 2)
