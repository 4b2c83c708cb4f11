from __future__ import annotations

import numpy as np
import pytest

from benchmarks.setfit_tasks import mean_row, score, with_unseen


def test_a_class_without_an_example_has_the_probability_of_one_more() -> None:
    found = with_unseen(np.array([[0.9, 0.1]]), ["c", "a"], ("a", "b", "c"), 3)
    assert found == pytest.approx(np.array([[0.075, 0.25, 0.675]]))


def test_classes_that_all_have_examples_keep_their_probabilities() -> None:
    found = with_unseen(np.array([[0.9, 0.1], [0.2, 0.8]]), ["b", "a"], ("a", "b"), 3)
    assert found == pytest.approx(np.array([[0.1, 0.9], [0.8, 0.2]]))
    accuracy, nll = score(found, np.array([1, 1]))
    assert (accuracy, nll) == (0.5, pytest.approx(-(np.log(0.9) + np.log(0.2)) / 2))


def test_the_mean_ratio_is_that_of_the_sums() -> None:
    rows = [["a", 1.0, 10.0, 10.0, 0.5, 0.4, 1.0, 1.2], ["b", 3.0, 2.0, 2 / 3, 0.7, 0.6, 0.8, 1.0]]
    assert mean_row(rows)[:4] == ["mean", 2.0, 6.0, 3.0]
