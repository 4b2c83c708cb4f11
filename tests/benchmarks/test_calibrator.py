"""Calibrators and held-out estimates from kept answers: made-up cells, and numbers that can be worked out by hand."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from abmll.assurance.folds import Scored
from abmll.calibrator import FEATURES, Calibrator
from benchmarks import calibrator as benchmark
from benchmarks import leave_one_out
from benchmarks.kept import Kept, confidences, predictives
from lab.evaluation.cells import Cell, CellResult, Cost
from lab.evaluation.temperature_scaling import Rule

IDENTITY = Calibrator("d", 0.0, dict.fromkeys(FEATURES, 0.0) | {"top_logit": 1.0}, 8, {"tasks": []})


def result(task: str, confidence: list[float], correct: list[int], shots: str = "4") -> CellResult:
    """Two options, the first of which is the answer; the label says whether that is right."""
    top = np.array(confidence)
    return CellResult(
        cell=Cell("ours", task, shots, 13),
        probabilities=np.column_stack([top, 1 - top]),
        widths=np.full(len(top), 2),
        labels=1 - np.array(correct, dtype=np.int64),
        mutual_information=np.full(len(top), 0.1),
        foreign_probabilities=np.zeros((0, 2)),
        foreign_information=np.zeros(0),
        classes=("a", "b"),
        support_size=4,
        cost=Cost(0, 0, 0.0, 0.0, 0),
    )


def answers(correct: list[int]) -> list[Scored]:
    """Held-out answers of a probability of .9 each."""
    return [Scored(i, (0.9, 0.1), 1 - right) for i, right in enumerate(correct)]


def estimate(task: str, correct: int, n: int) -> dict[str, Any]:
    return {"posterior": "d", "task": task, "shots": "4", "seed": 13, "folds": 1, "correct": correct, "n": n}


def test_kept_answers_are_found_by_task_and_k_and_tempered(tmp_path: Path) -> None:
    for task, shots in (("one", "4"), ("two", "4"), ("one", "16")):
        result(task, [0.8], [1], shots).save(tmp_path)
    (tmp_path / "methods.json").write_text('{"ours": {"digest": "d"}}')
    kept = Kept(tmp_path, "ours", Rule(2.0))
    assert kept.about == {"digest": "d"}
    assert [(r.cell.task, r.cell.shots) for r in kept.cells([], ["4"])] == [("one", "4"), ("two", "4")]
    (found,) = kept.cells(["one"], ["16", "32"])
    sure, right = confidences(found)
    assert (sure, right) == (pytest.approx(2 / 3), [True])
    (predictive,) = predictives(found, 8)
    assert (predictive.samples, predictive.margin) == (8, pytest.approx(1 / 3))
    assert predictive.uncertainty.mutual_information == pytest.approx(0.1)


def test_a_file_of_kept_answers_is_read_as_their_folder_is(tmp_path: Path) -> None:
    wide = replace(
        result("two", [0.8, 0.7], [1, 0]), probabilities=np.array([[0.7, 0.3, 0], [0.5, 0.2, 0.3]])
    )
    wide = replace(wide, widths=np.array([2, 3]), mutual_information=np.array([float("nan"), 0.2]))
    for cell in (result("one", [0.8], [1]), wide):
        cell.save(tmp_path)
    (tmp_path / "methods.json").write_text('{"ours": {"digest": "d"}}')
    folder = Kept(tmp_path, "ours", Rule(2.0))
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(replace(folder, rule=Rule()).to_json()))
    file = replace(folder, source=path)
    assert file.about["digest"] == "d"
    for one, other in zip(folder.cells([], ["4"]), file.cells([], ["4"]), strict=True):
        assert (one.cell, one.classes, one.cost) == (other.cell, other.classes, other.cost)
        for name in ("probabilities", "widths", "labels", "mutual_information"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    assert len(file.cells(["two"], ["4"])) == 1


def test_the_identity_scores_as_the_raw_confidence_does() -> None:
    raw = [result("one", [0.9, 0.6], [1, 0]), result("two", [0.8], [1])]
    rows = benchmark.score_rows("4", raw, benchmark.sure_by_arm(raw, raw, {}, 8, IDENTITY))
    assert [row[1] for row in rows] == [
        benchmark.RAW, benchmark.TEMPERED, benchmark.CALIBRATED, benchmark.KNOWN, benchmark.OWN,
    ]  # fmt: skip
    brier = ((0.1**2 + 0.6**2) / 2 + 0.2**2) / 2
    assert rows[0][2:6] == [2, pytest.approx(0.75), pytest.approx((0.75 + 0.8) / 2), pytest.approx(brier)]
    assert rows[0][7] == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    for row in rows[1:]:
        assert row[3:6] == pytest.approx(rows[0][3:6])
        assert [float(row[i].split()[0]) for i in (6, 8)] == pytest.approx([0, 0])


def test_the_folds_estimate_enters_where_it_is_known() -> None:
    known_answers = {("one", "4", 13): answers([1, 1, 1, 0])}
    one, two = result("one", [0.9], [1]), result("two", [0.9], [1])
    rows = lambda r, known: benchmark.feature_rows(r, known_answers, 8, folds_known=known)[0, -2:]  # noqa: E731
    assert rows(one, True) == pytest.approx([math.log(3.5 / 1.5), 0.0])
    assert rows(one, False) == pytest.approx([0.0, 1.0])
    assert rows(two, True) == pytest.approx([0.0, 1.0])


def test_held_out_answers_choose_the_temperature_where_they_are_known() -> None:
    sure = [0.9] * 20
    raw = [result("one", sure, [1] * 19 + [0]), result("two", sure, [1] * 10 + [0] * 10)]
    known = {("two", "4", 13): answers([1, 0] * 10)}
    one, two = benchmark.sure_by_arm(raw, raw, known, 8, IDENTITY)[benchmark.OWN]
    assert one == pytest.approx(0.9)
    assert 0.5 < two[0] < 0.75


def test_fitting_takes_every_cell() -> None:
    rng = np.random.default_rng(0)
    results = []
    for name in ("one", "two", "three"):
        confidence = rng.uniform(0.55, 0.99, 60)
        results.append(
            result(name, confidence.tolist(), (rng.uniform(size=60) < confidence**3).astype(int).tolist())
        )
    made = benchmark.fit(results, {}, 8, "d" * 64, argparse.Namespace(shots=["4"]))
    assert (made.fewest_samples, made.fitted["items"]) == (8, 180)
    assert made.fitted["tasks"] == ["one", "three", "two"]
    raw, _, calibrated, *_ = benchmark.score_rows(
        "4", results, benchmark.sure_by_arm(results, results, {}, 8, made)
    )
    assert calibrated[5] < raw[5]
    assert made.fitted["left_out_task_nll"] < made.fitted["raw_nll"]
    assert "never falls" in benchmark.describe(made)


def test_a_task_takes_no_part_in_its_cross_fitted_temperature() -> None:
    sure = [0.9] * 20
    right, wrong = result("right", sure, [1] * 19 + [0]), result("wrong", sure, [1] * 10 + [0] * 10)
    colder, warmer = benchmark.cross_fitted([wrong, right])
    # .9 is right 19 times of 20 on the one: it should be .95. On the other it says nothing.
    assert confidences(colder)[0] == pytest.approx(0.95, abs=1e-3)
    assert confidences(warmer)[0] == pytest.approx(0.5, abs=0.03)


def test_a_finished_estimate_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for part in ("train", "test"):
            (tmp_path / name / f"{part}.jsonl").write_text(json.dumps({"input": "x", "output": "y"}) + "\n")
    served: Any = SimpleNamespace(
        manifest=SimpleNamespace(id="theta", digest="d", training={"data": [{"task": "other"}]})
    )
    computed = []

    def run_cell(_: Any, task: Any, key: tuple[Any, ...]) -> dict[str, Any]:
        computed.append((task.name, key[3]))
        return {"n": 4, "correct": 3, "answers": [(1, [0.4, 0.6])] * 3 + [(0, [0.4, 0.6])], "seconds": 0.0}

    def options(tasks: list[str], seeds: list[int], samples: int = 8) -> argparse.Namespace:
        return argparse.Namespace(
            data=tmp_path, tasks=tasks, shots=["4"], seeds=seeds, folds=4, samples=samples,
            work=tmp_path / "new" / "rows.jsonl",
        )  # fmt: skip

    monkeypatch.setattr(leave_one_out, "run_cell", run_cell)
    leave_one_out.collect(served, options(["one"], [1]))
    rows = leave_one_out.collect(served, options(["one", "two"], [1, 2]))
    assert computed == [("one", 1), ("one", 2), ("two", 1), ("two", 2)]
    assert [(row["task"], row["seed"]) for row in rows] == computed
    assert len(leave_one_out.collect(served, options(["two"], [1], samples=4))) == 1
    assert len(computed) == 5
    found = leave_one_out.held_out(tmp_path / "new" / "rows.jsonl", "d")
    assert [answer.correct for answer in found["two", "4", 2]] == [True] * 3 + [False]
    assert leave_one_out.held_out(tmp_path / "new" / "rows.jsonl", "other") == {}


def test_rank_correlation_and_coverage() -> None:
    """Held-out shares in the order of the true ones; the last interval is wide of the mark; one estimate has no test."""
    estimates = [
        estimate("one", 1, 4),
        estimate("two", 2, 4),
        estimate("three", 40, 40),
        estimate("four", 1, 4),
    ]
    results = [
        result("one", [0.9] * 4, [1, 0, 0, 0]),
        result("two", [0.9] * 4, [1, 1, 0, 0]),
        result("three", [0.9] * 4, [1, 1, 1, 0]),
    ]
    shots, tasks, correlation, _, folds, items, coverage, expected, _ = leave_one_out.estimate_row(
        "4", estimates, results
    )
    assert (shots, tasks, correlation, coverage) == ("4", 3, pytest.approx(1.0), "2 of 3")
    assert (folds, items) == (pytest.approx((0.25 + 0.5 + 1) / 3), pytest.approx(0.5))
    pairs = [(1, 4, [1, 0, 0, 0]), (2, 4, [1, 1, 0, 0]), (40, 40, [1, 1, 1, 0])]
    alone = [leave_one_out.chance_to_hold(c, n, np.array(right, dtype=bool)) for c, n, right in pairs]
    assert expected == pytest.approx(sum(alone))


def test_how_often_a_perfect_estimate_would_hold() -> None:
    both, none = np.array([True, True]), np.array([False, False])
    assert leave_one_out.chance_to_hold(3, 3, both) == leave_one_out.chance_to_hold(0, 3, none) == 1
    # One held-out answer and one test answer at a rate of one half: they agree half of the time, and no interval holds both.
    assert leave_one_out.chance_to_hold(1, 1, np.array([False])) == pytest.approx(0.5)
