"""The calibrator benchmark on made-up cells: resuming, fitting, and numbers that can be worked out by hand."""

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from abmll.calibrator import FEATURES, Calibrator
from benchmarks import calibrator as benchmark

IDENTITY = Calibrator("d", 0.0, dict.fromkeys(FEATURES, 0.0) | {"top_logit": 1.0}, 8, {"tasks": []})


def cell(
    task: str, confidence: list[float], correct: list[int], held_out: tuple[int, int] = (3, 4)
) -> dict[str, Any]:
    rows = [
        [math.log(c / (1 - c)), 2 * c - 1, 0.1, 0.5, math.log(2), math.log(4), 0.0, 1.0] for c in confidence
    ]
    return {
        "posterior": "d", "task": task, "shots": 4, "seed": 1, "items": 9, "folds": 4, "samples": 8, "support": 4,
        "held_out_correct": held_out[0], "held_out_n": held_out[1],
        "features": rows, "confidence": confidence, "correct": correct, "predict_seconds": 0.0, "folds_seconds": 0.0,
    }  # fmt: skip


def options(tmp_path: Path, tasks: list[str], **values: Any) -> argparse.Namespace:
    plain = {
        "shots": [4],
        "seeds": [1],
        "items": 9,
        "folds": 4,
        "samples": 8,
        "work": tmp_path / "rows.jsonl",
    }
    return argparse.Namespace(data=tmp_path, tasks=tasks, **{**plain, **values})


def test_a_finished_cell_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for part in ("train", "test"):
            (tmp_path / name / f"{part}.jsonl").write_text(json.dumps({"input": "x", "output": "y"}) + "\n")
    served: Any = SimpleNamespace(
        manifest=SimpleNamespace(id="theta", digest="d", training={"data": [{"task": "other"}]})
    )
    computed = []

    def run_cell(_: Any, task: Any, about: dict[str, Any]) -> dict[str, Any]:
        computed.append((task.name, about["seed"]))
        return {**cell(task.name, [0.7], [1]), **about}

    monkeypatch.setattr(benchmark, "run_cell", run_cell)
    benchmark.collect(served, options(tmp_path, ["one"]))
    rows = benchmark.collect(served, options(tmp_path, ["one", "two"], seeds=[1, 2]))
    assert computed == [("one", 1), ("one", 2), ("two", 1), ("two", 2)]
    assert [(row["task"], row["seed"]) for row in rows] == computed
    assert len(benchmark.collect(served, options(tmp_path, ["two"], samples=4))) == 1
    assert len(computed) == 5


def test_the_identity_scores_as_the_raw_confidence_does() -> None:
    rows = [cell("one", [0.9, 0.6], [1, 0]), cell("two", [0.8], [1])]
    raw, calibrated, known = benchmark.score_rows(rows, 4, IDENTITY)
    brier = ((0.1**2 + 0.6**2) / 2 + 0.2**2) / 2
    assert raw[:5] == [4, "raw", pytest.approx(0.75), pytest.approx((0.75 + 0.8) / 2), pytest.approx(brier)]
    assert raw[6] == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    for arm in (calibrated, known):
        assert arm[2:5] == pytest.approx(raw[2:5])
        assert [float(arm[i].split()[0]) for i in (5, 7)] == pytest.approx([0, 0])


def test_the_folds_estimate_enters_where_it_is_known() -> None:
    row = cell("one", [0.9], [1], held_out=(3, 4))
    assert benchmark.feature_matrix(row, folds_known=True)[0, -2:] == pytest.approx(
        [math.log(3.5 / 1.5), 0.0]
    )
    assert benchmark.feature_matrix(row, folds_known=False)[0, -2:] == pytest.approx([0.0, 1.0])


def test_rank_correlation_and_coverage() -> None:
    """Held-out shares in the order of the true ones; the last interval is wide of the mark."""
    rows = [
        cell("one", [0.9] * 4, [1, 0, 0, 0], held_out=(1, 4)),
        cell("two", [0.9] * 4, [1, 1, 0, 0], held_out=(2, 4)),
        cell("three", [0.9] * 4, [1, 1, 1, 0], held_out=(40, 40)),
    ]
    shots, correlation, _, folds, items, coverage, _ = benchmark.estimate_row(rows, 4)
    assert (shots, correlation, coverage) == (4, pytest.approx(1.0), "2 of 3")
    assert (folds, items) == (pytest.approx((0.25 + 0.5 + 1) / 3), pytest.approx(0.5))


def test_fitting_takes_every_cell(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for name in ("one", "two", "three"):
        confidence = rng.uniform(0.55, 0.99, 60)
        correct = (rng.uniform(size=60) < confidence**3).astype(int)
        rows.append(cell(name, confidence.tolist(), correct.tolist()))
    made = benchmark.fit(rows, "d" * 64, options(tmp_path, ["one", "two", "three"]))
    assert (made.fewest_samples, made.fitted["items"]) == (8, 180)
    assert made.fitted["tasks"] == ["one", "three", "two"]
    raw, calibrated, _ = benchmark.score_rows(rows, 4, made)
    assert calibrated[4] < raw[4]
    assert "never falls" in benchmark.describe(IDENTITY)
