"""The temperature factor is the most probable one, and few answers move it less than many."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abmll.assurance.folds import HeldOutAnswer
from abmll.assurance.held_out import CHOICE_SPREAD, SPREAD, HeldOutSummary, temperature_factor
from abmll.prediction.uncertainty import tempered

SURE = (0.98, 0.01, 0.01)


def answers(labels: Sequence[int], probabilities: tuple[float, ...] = SURE) -> list[HeldOutAnswer]:
    return [HeldOutAnswer(i, probabilities, label) for i, label in enumerate(labels)]


def energy(rows: Sequence[HeldOutAnswer], factor: float) -> float:
    """Return what the factor minimises.

    It is the cross-entropy to Platt's targets, by the library's own tempering, and the prior.
    """
    total, share = 0.0, 1 / (len(rows) + 2)
    for row in rows:
        logs = tempered(torch.tensor(row.probabilities, dtype=torch.float64), factor).log()
        target = torch.full_like(logs, share / (len(logs) - 1))
        target[row.label] = 1 - share
        total -= float((target * logs).sum())
    return total + (math.log(factor) / SPREAD) ** 2 / 2


@given(
    rows=st.lists(
        st.tuples(st.lists(st.floats(0.01, 1), min_size=2, max_size=5), st.integers(0, 4)),
        min_size=1,
        max_size=8,
    )
)
def test_no_other_factor_is_more_probable(rows: list[tuple[list[float], int]]) -> None:
    given = [
        HeldOutAnswer(i, tuple(v / sum(values) for v in values), label % len(values))
        for i, (values, label) in enumerate(rows)
    ]
    found = energy(given, temperature_factor(given))
    rng = random.Random(0)
    assert all(found <= energy(given, math.exp(rng.uniform(-3, 3))) + 2e-3 for _ in range(40))


def test_wrong_answers_flatten_right_ones_sharpen_and_more_of_them_do_so_more() -> None:
    unsure = (0.6, 0.2, 0.2)
    wrong, right = (
        [temperature_factor(answers([label] * n, unsure)) for n in (1, 4, 16)] for label in (1, 0)
    )
    assert 1 < wrong[0] < wrong[1] < wrong[2]
    assert 1 > right[0] > right[1] > right[2]


def test_few_right_answers_do_not_show_that_there_are_no_wrong_ones() -> None:
    factors = [temperature_factor(answers([0] * n)) for n in (2, 8, 100)]
    assert factors[0] > factors[1] > 1 > factors[2]


def test_answers_that_know_nothing_change_nothing() -> None:
    assert temperature_factor(answers([0, 1, 2], (1 / 3, 1 / 3, 1 / 3))) == 1
    assert temperature_factor([]) == 1


def test_options_without_probability_are_no_obstacle() -> None:
    assert 1 < temperature_factor(answers([1], (1.0, 0.0))) < math.inf


def test_what_is_told_of_the_answers() -> None:
    found = HeldOutSummary.of(answers([0, 0, 1]))
    assert (found.n, found.correct) == (3, 2)
    assert found.nll == pytest.approx(-(2 * math.log(0.98) + math.log(0.01)) / 3)
    assert found.temperature_factor == temperature_factor(answers([0, 0, 1]))


def test_multiple_choice_stays_closer_to_the_rule() -> None:
    rows = answers([1, 1, 1, 0])
    fixed, choice = HeldOutSummary.of(rows), HeldOutSummary.of(rows, multiple_choice=True)
    assert 1 < choice.temperature_factor < fixed.temperature_factor
    assert choice.temperature_factor == temperature_factor(rows, CHOICE_SPREAD)
