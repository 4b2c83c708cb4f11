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
from abmll.assurance.held_out import (
    CHOICE_SPREAD,
    QUESTION_WEIGHT,
    SPREAD,
    HeldOutSummary,
    QuestionSummary,
    temperature_factor,
)
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


def test_a_question_is_drawn_towards_all_questions_by_how_few_answers_it_has() -> None:
    sure, unsure = (0.98, 0.02), (0.6, 0.4)
    rows = [HeldOutAnswer(i, sure, i % 2) for i in range(8)]
    rows += [HeldOutAnswer(8 + i, unsure, 0) for i in range(4)]
    rows += [HeldOutAnswer(12, sure, 2, answerable=0.9)]  # an input that does not tell
    names = ["a"] * 8 + ["b"] * 4 + ["c"]
    found = HeldOutSummary.of(rows, instructions=names)
    common = temperature_factor(rows[:12])
    assert (found.n, found.correct, found.temperature_factor) == (12, 8, common)
    assert found.nll == pytest.approx(math.fsum(row.nll for row in rows[:12]) / 12)
    a, b, c = found.by_question
    for question, own in ((a, rows[:8]), (b, rows[8:12])):
        n = len(own)
        mean = (n * math.log(temperature_factor(own)) + QUESTION_WEIGHT * math.log(common)) / (
            n + QUESTION_WEIGHT
        )
        assert math.log(question.temperature_factor) == pytest.approx(mean)
    assert a.temperature_factor > common > b.temperature_factor
    assert c == QuestionSummary("c", 0, 0, None, pytest.approx(common))


def test_one_question_has_the_adapters_temperature_alone() -> None:
    rows = answers([0, 1, 0])
    assert HeldOutSummary.of(rows, instructions=["a"] * 3) == HeldOutSummary.of(rows)
    assert "by_question" not in HeldOutSummary.of(rows).to_json()


@pytest.mark.parametrize("instructions", [(), ("a", "b", "a")])
def test_a_summary_reads_what_it_wrote(instructions: tuple[str, ...]) -> None:
    found = HeldOutSummary.of(answers([0, 1, 0]), instructions=instructions)
    assert HeldOutSummary.from_json(found.to_json()) == found
    old = {"n": 2, "correct": 1, "nll": 0.75, "temperature_factor": 1.5}
    assert HeldOutSummary.from_json(old).to_json() == old
