"""Metrics against scikit-learn, torchmetrics, values of relplot, and closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from lab.evaluation.calibration_error import calibrated_ece, expected_calibration_error, smooth_ece
from lab.evaluation.cells import Cell, CellResult, Cost
from lab.evaluation.metrics import METRICS, ItemScores, auroc, evaluate
from lab.evaluation.selective_risk import aurc, coverage_at_risk, risk_curve


def result(probabilities: np.ndarray, labels: np.ndarray, **values: object) -> CellResult:
    n, c = probabilities.shape
    plain = CellResult(
        cell=Cell("method", "task", "16", 13),
        probabilities=probabilities,
        widths=np.full(n, c),
        labels=labels,
        mutual_information=np.full(n, np.nan),
        foreign_probabilities=np.zeros((0, c)),
        foreign_information=np.zeros(0),
        classes=tuple("abcdef"[:c]),
        support_size=16,
        cost=Cost(1, 2, 0.5, 1.0, 3),
    )
    return replace(plain, **values)  # type: ignore[arg-type]


def random_result(n: int = 200, classes: int = 4, seed: int = 0) -> CellResult:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.7), n)
    return result(probabilities, rng.integers(classes, size=n))


def test_item_metrics_and_ece_are_those_of_the_libraries() -> None:
    found = random_result()
    p, y = found.probabilities, found.labels
    measured = evaluate(found)
    assert set(measured) == set(METRICS)
    assert measured["accuracy"] == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert measured["macro_f1"] == pytest.approx(f1_score(y, p.argmax(1), average="macro"))
    assert measured["nll"] == pytest.approx(log_loss(y, p))
    assert measured["brier"] == pytest.approx(brier_score_loss(y, p, scale_by_half=False))
    ece = multiclass_calibration_error(torch.tensor(p), torch.tensor(y), 4, n_bins=15)
    assert measured["ece15"] == pytest.approx(float(ece), abs=1e-6)


def test_ece_bins_a_confidence_of_one_and_of_a_bins_edge_as_torchmetrics_does() -> None:
    confidence = torch.tensor([1.0, 1.0, 0.96, 0.6, 0.55, 0.95])
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    ece = multiclass_calibration_error(probabilities, labels, 2, n_bins=15)
    found = expected_calibration_error(confidence.double().numpy(), (labels == 0).double().numpy())
    assert found == pytest.approx(float(ece), abs=1e-6)


# Values of relplot 1.0.3 (`relplot.smECE`) on the same draws.
@pytest.mark.parametrize(
    ("seed", "n", "shift", "reference"),
    [(0, 100, 0.0, 0.051586), (1, 100, 0.2, 0.209115), (2, 500, 0.1, 0.116214), (3, 57, 0.4, 0.374350)],
)
def test_smooth_ece_is_that_of_the_reference_library(
    seed: int, n: int, shift: float, reference: float
) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1, n)
    correct = (rng.random(n) < np.clip(confidence - shift, 0, 1)).astype(float)
    assert smooth_ece(confidence, correct) == pytest.approx(reference, abs=2e-4)


def test_a_calibrated_models_ece_is_the_mean_over_its_own_labels() -> None:
    """With confidences of 1/2, ECE is |Binomial(n, 1/2) / n - 1/2|, whose mean is known."""
    n = 100
    expected = np.sqrt(1 / (2 * np.pi * n))  # 1 / (2 sqrt n) times E|normal| = sqrt(2 / pi)
    assert calibrated_ece(np.full(n, 0.5)) == pytest.approx(expected, rel=0.06)
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0.3, 1, 300)
    drawn = [expected_calibration_error(confidence, rng.random(300) < confidence) for _ in range(500)]
    assert calibrated_ece(confidence) == pytest.approx(np.mean(drawn), rel=0.05)


def test_a_perfect_ranking_has_the_least_area_and_ties_are_averaged() -> None:
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 1.0, 0.0, 0.0])
    assert risk_curve(confidence, correct).tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert aurc(confidence, correct) == pytest.approx((1 / 3 + 1 / 2) / 4)
    tied = np.full(4, 0.9)
    assert risk_curve(tied, correct).tolist() == [0.5] * 4
    orders = [
        risk_curve(confidence, correct[order])
        for order in ([0, 1, 2, 3], [2, 3, 0, 1], [0, 2, 1, 3], [2, 0, 3, 1])
    ]
    assert np.mean(orders, 0)[-1] == 0.5


def test_coverage_is_the_most_a_threshold_can_answer() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.7, 0.6])
    assert coverage_at_risk(confidence, np.array([1.0, 1, 1, 0, 1]), 0.25) == 1.0
    assert coverage_at_risk(confidence, np.array([1.0, 1, 1, 0, 0]), 0.25) == 0.8
    assert (
        coverage_at_risk(confidence, np.array([1.0, 1, 1, 0, 0]), 0.2) == 0.4
    )  # no threshold parts the two of 0.7
    assert coverage_at_risk(confidence, np.zeros(5), 0.1) == 0.0


def test_information_tells_foreign_items_apart() -> None:
    assert auroc(np.array([0.1, 0.2]), np.array([0.3, 0.15])) == pytest.approx(0.75)
    assert np.isnan(auroc(np.array([np.nan, 0.2]), np.array([0.3])))
    assert np.isnan(auroc(np.array([0.2]), np.zeros(0)))


def test_items_with_fewer_options_count_as_if_the_rest_did_not_exist() -> None:
    short = ItemScores.of(np.array([[0.7, 0.3]]), np.array([0]))
    padded = ItemScores.of(np.array([[0.7, 0.3, 0.0, 0.0]]), np.array([0]))
    assert short.brier == padded.brier
    assert short.nll == padded.nll
    assert np.isnan(evaluate(replace(random_result(), classes=()))["macro_f1"])
