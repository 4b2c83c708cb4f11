"""Answers of an evaluation, read from its folder and from a file made of it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.answers import Answers, confidences, main
from lab.evaluation.cells import Cell, CellResult, Cost
from lab.evaluation.temperature_scaling import Rule


def result(task: str, confidence: list[float], correct: list[int], shots: str = "4") -> CellResult:
    """Return a cell of two options, whose first is the answer, right where `correct` is 1."""
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


def test_answers_are_found_by_task_and_k_and_tempered(tmp_path: Path) -> None:
    for task, shots in (("one", "4"), ("two", "4"), ("one", "16")):
        result(task, [0.8], [1], shots).save(tmp_path)
    (tmp_path / "methods.json").write_text('{"ours": {"digest": "d"}}')
    answers = Answers(tmp_path, "ours", Rule(2.0))
    assert answers.about == {"digest": "d"}
    assert [(r.cell.task, r.cell.shots) for r in answers.cells([], ["4"])] == [("one", "4"), ("two", "4")]
    (found,) = answers.cells(["one"], ["16", "32"])
    sure, right = confidences(found)
    assert (sure, right) == (pytest.approx(2 / 3), [True])


def test_a_file_of_answers_is_read_as_their_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = replace(
        result("two", [0.8, 0.7], [1, 0]), probabilities=np.array([[0.7, 0.3, 0], [0.5, 0.2, 0.3]])
    )
    wide = replace(wide, widths=np.array([2, 3]), mutual_information=np.array([float("nan"), 0.2]))
    for cell in (result("one", [0.8], [1]), wide):
        cell.save(tmp_path)
    (tmp_path / "methods.json").write_text('{"ours": {"digest": "d"}}')
    folder = Answers(tmp_path, "ours", Rule(2.0))
    path = tmp_path / "new" / "answers.json.gz"
    monkeypatch.setattr(
        sys, "argv", ["answers", "--cells", str(tmp_path), "--method", "ours", "--out", str(path)]
    )
    main()
    file = replace(folder, source=path)
    assert file.about["digest"] == "d"
    for one, other in zip(folder.cells([], ["4"]), file.cells([], ["4"]), strict=True):
        assert (one.cell, one.classes, one.cost) == (other.cell, other.classes, other.cost)
        for name in ("probabilities", "widths", "labels", "mutual_information"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    assert len(file.cells(["two"], ["4"])) == 1
