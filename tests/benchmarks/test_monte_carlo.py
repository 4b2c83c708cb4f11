"""Differences of sampled and mean, worked out by hand, and answers without their temperature."""

import numpy as np
import pytest

from abmll.posterior.config import TemperatureRule
from benchmarks import monte_carlo
from lab.evaluation.temperature_scaling import Rule, with_temperature
from tests.benchmarks.test_answers import result
from tests.tiny import make_config


def test_differences_are_means_over_tasks() -> None:
    right, wrong = (
        [result(task, [0.8, 0.8], [1, 1]) for task in ("one", "two")],
        result("two", [0.8, 0.6], [1, 0]),
    )
    accuracy, nll, *_ = monte_carlo.differences([(right[0], right[0]), (right[1], wrong)])
    assert accuracy == "+0.2500 [+0.0000, +0.5000]"
    expected = (np.log(0.4) - np.log(0.8)) / 2 / 2
    assert float(nll.split()[0]) == pytest.approx(expected, abs=1e-4)
    again = [(right[0], right[0]), (right[1], wrong), (right[1], wrong)]
    assert monte_carlo.differences(again)[0] == accuracy  # a task's seeds are not tasks of their own


def test_the_temperature_is_taken_back() -> None:
    config = make_config(temperature=TemperatureRule(2.0, 0.5, 3.0))
    raw = result("one", [0.9, 0.6], [1, 0])
    served = with_temperature(raw, Rule(2.0, 0.5, 3.0), "ours")
    np.testing.assert_allclose(
        monte_carlo.without_temperature(served, config).probabilities, raw.probabilities
    )


def test_each_of_a_pair_gets_its_own_temperature() -> None:
    pair = result("one", [0.9, 0.6], [1, 0]), result("one", [0.8, 0.7], [1, 0])
    one, other = monte_carlo.at(pair, [Rule(2.0), Rule(0.5)])
    np.testing.assert_array_equal(
        one.probabilities, with_temperature(pair[0], Rule(2.0), "ours").probabilities
    )
    np.testing.assert_array_equal(
        other.probabilities, with_temperature(pair[1], Rule(0.5), "ours").probabilities
    )
