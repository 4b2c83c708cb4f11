"""The picture of thresholds shows the truth of each draw, and the numbers of the simulation."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.certified_gates import Records
from benchmarks.risk_coverage import DELTA, PANELS, TARGET, dots, draw, measured, summary

ROW = {"n": 200, "target_error": 0.1, "violations": 25, "draws": 100, "served": 0.71, "coverage": 0.224}


@pytest.fixture(scope="module")
def task() -> Records:
    confidence = np.random.default_rng(0).beta(3.4, 1.6, 2000)
    return Records("t", confidence, np.random.default_rng(1).random(2000) < confidence)


def test_each_dot_is_the_true_coverage_and_error_above_a_threshold(task: Records) -> None:
    found = dots([task], labels=500, draws=60)
    assert set(found) == set(PANELS)
    broken = {name: np.mean([error > TARGET for _, error in points]) for name, points in found.items()}
    assert broken["naive"] > 0.3
    assert sum(error > TARGET for _, error in found["certified"]) / 60 <= DELTA
    assert len(found["naive"]) <= 60
    assert all(0 <= coverage <= 1 for points in found.values() for coverage, _ in points)


def test_the_numbers_beside_the_dots_are_those_of_the_method() -> None:
    rows = [{**ROW, "method": "naive"}, {**ROW, "method": "naive", "n": 100}, {**ROW, "method": "certified"}]
    assert measured(rows, "naive") is rows[0]
    assert summary(rows[0]) == (
        "25.0% of all draws broke the target.\n71% found a threshold. Mean coverage 22%."
    )


def test_the_picture_is_written_where_no_draw_was_certified(tmp_path: Path) -> None:
    rows = [{**ROW, "method": name} for name in PANELS]
    draw({"naive": [(0.5, 0.2)], "certified": []}, rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
