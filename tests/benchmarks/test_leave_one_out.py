"""Held-out estimates on invented cells, against numbers worked out by hand."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import leave_one_out
from tests.benchmarks.test_answers import result


def estimate(task: str, correct: int, n: int) -> dict[str, Any]:
    return {"posterior": "d", "task": task, "shots": "4", "seed": 13, "folds": 1, "correct": correct, "n": n}


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
    """Held-out accuracies are in the order of the test accuracies.

    The interval of `three` does not hold its test accuracy. `four` has no test answers.
    """
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
    # One held-out answer and one test answer at a rate of one half agree with probability 1/2. No
    # interval of one answer holds both 0 and 1.
    assert leave_one_out.chance_to_hold(1, 1, np.array([False])) == pytest.approx(0.5)
