"""The temperature factor is the most probable one, and a calibrated adaptation is a plain one at that temperature."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abmll.adaptation.settings import AdaptSettings
from abmll.assurance.cross_fitting import adapt_calibrated, cross_predict
from abmll.assurance.folds import Scored, make_folds
from abmll.assurance.held_out import CHOICE_SPREAD, SPREAD, HeldOut, temperature_factor
from abmll.model import FewShotModel
from abmll.prediction.uncertainty import tempered
from abmll.text.tasks import Example

SURE = (0.98, 0.01, 0.01)


def answers(labels: Sequence[int], probabilities: tuple[float, ...] = SURE) -> list[Scored]:
    return [Scored(i, probabilities, label) for i, label in enumerate(labels)]


def energy(rows: Sequence[Scored], factor: float) -> float:
    """What the factor minimises: cross-entropy to Platt's targets by the library's own tempering, and the prior."""
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
    scored = [
        Scored(i, tuple(v / sum(values) for v in values), label % len(values))
        for i, (values, label) in enumerate(rows)
    ]
    found = energy(scored, temperature_factor(scored))
    rng = random.Random(0)
    assert all(found <= energy(scored, math.exp(rng.uniform(-3, 3))) + 2e-3 for _ in range(40))


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
    found = HeldOut.of(answers([0, 0, 1]))
    assert (found.n, found.correct) == (3, 2)
    assert found.nll == pytest.approx(-(2 * math.log(0.98) + math.log(0.01)) / 3)
    assert found.temperature_factor == temperature_factor(answers([0, 0, 1]))


def test_multiple_choice_stays_closer_to_the_rule() -> None:
    rows = answers([1, 1, 1, 0])
    fixed, choice = HeldOut.of(rows), HeldOut.of(rows, multiple_choice=True)
    assert 1 < choice.temperature_factor < fixed.temperature_factor
    assert choice.temperature_factor == temperature_factor(rows, CHOICE_SPREAD)


@pytest.mark.parametrize(("own_options", "spread"), [(False, SPREAD), (True, CHOICE_SPREAD)])
def test_a_calibrated_adaptation_is_the_plain_one_at_the_temperature_of_its_held_out_examples(
    make_model: Callable[..., FewShotModel], support: list[Example], own_options: bool, spread: float
) -> None:
    if own_options:
        support = [replace(row, options=(*row.options, f"the {i}th")) for i, row in enumerate(support)]
    model, settings = make_model(), AdaptSettings(steps=2, learning_rate=0.01, batch_size=4)
    folds = make_folds(support, 3)
    adaptation, found = adapt_calibrated(model, support, folds, settings, seed=5, samples=4)
    plain = model.adapt(support, settings, seed=5)
    assert adaptation.losses == pytest.approx(plain.losses, abs=1e-3)
    assert torch.allclose(adaptation.posterior.values, plain.posterior.values, atol=1e-2)
    rows = cross_predict(model, support, folds, settings, seed=5, samples=4)
    assert found.temperature_factor == pytest.approx(temperature_factor(rows, spread), rel=0.06 * spread)
    assert (found.n, found.correct) == (len(rows), sum(row.correct for row in rows))
    ratio = adaptation.posterior.config.temperature.base / plain.posterior.config.temperature.base
    assert ratio == pytest.approx(found.temperature_factor)
    assert ratio != 1
