"""The simulations of gates and alarms: the truth that they compare with, and what they count."""

import numpy as np
import pytest

from benchmarks.certified_gates import Records, Toy, naive_threshold, simulate
from benchmarks.drift import Stream, run, summary
from tests.benchmarks.test_answers import result


def test_coverage_and_error_of_the_toy_are_those_of_many_draws():
    confidence, correct = Toy().draw(np.random.default_rng(0), 200_000)
    for threshold in (0.0, 0.5, 0.85):
        coverage, error = Toy().above(threshold)
        accepted = confidence >= threshold
        assert coverage == pytest.approx(accepted.mean(), abs=0.005)
        assert error == pytest.approx(1 - correct[accepted].mean(), abs=0.005)
    assert Toy().above(0.0)[1] == pytest.approx(0.32)
    assert Toy().oracle(0.1) == pytest.approx(0.26, abs=0.01)


def test_records_are_counted_from_the_threshold_up_with_ties():
    task = Records("t", [0.2, 0.9, 0.5, 0.5], [False, True, False, True])
    assert task.above(0.5) == (0.75, pytest.approx(1 / 3))
    assert task.above(0.6) == (0.25, 0.0)
    assert task.above(0.95) == (0.0, 0.0)
    assert task.oracle(0.4) == 0.75
    drawn, _ = task.draw(np.random.default_rng(0), 100)
    assert set(drawn) == {0.2, 0.5, 0.9}


def test_the_items_of_all_support_seeds_are_one_population():
    task = Records.of("t", [result("t", [0.9, 0.6], [1, 0]), result("t", [0.7], [1])])
    assert task.above(0.65) == (pytest.approx(2 / 3), 0.0)
    assert task.above(0.0) == (1.0, pytest.approx(1 / 3))


def test_the_naive_threshold_takes_ties_together():
    confidence = np.array([0.9, 0.5, 0.5, 0.1])
    assert naive_threshold(confidence, np.array([True, True, False, False]), 0.4) == 0.5
    assert naive_threshold(confidence, np.array([True, True, False, False]), 0.1) == 0.9
    assert naive_threshold(confidence, np.zeros(4, bool), 0.1) is None


def test_the_naive_threshold_breaks_where_certificates_hold():
    found = simulate(Toy(), 300, 0.15, 0.1, 100, 1)
    assert found["naive"]["violations"] > 25
    assert found["certified"]["violations"] <= 18
    assert 0 < found["certified"]["coverage"] < found["naive"]["coverage"]


def test_a_changed_domain_raises_the_domain_alarm_and_wrong_answers_the_risk_alarm():
    rng = np.random.default_rng(2)
    _, domain, _ = run(Stream("new", 100, domain=(2, 3)), 300, 300, 0.2, 0.5, 0.01, rng)
    assert 100 < domain < 300
    risk, _, labels = run(Stream("shift", 100, right=0.2), 400, 300, 0.2, 1.0, 0.01, rng)
    assert 100 < risk < 400
    assert 0 < labels <= risk - 100


def test_false_alarms_are_those_before_the_change():
    found = summary([None, 50, 120, 160], 100)
    assert (found["runs"], found["false"], found["raised"], found["median_delay"]) == (4, 1, 2, 40)
