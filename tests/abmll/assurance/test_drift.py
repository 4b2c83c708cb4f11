"""The alarms against closed forms, MAPIE's martingale, and Ville's bound in simulation."""

import itertools
import math

import numpy as np
import pytest
from mapie.exchangeability_testing import OnlineMartingaleTest, RiskMonitoring
from scipy.stats import binomtest, kstest

from abmll.assurance.drift import ExchangeabilityAlarm, RiskAlarm


def test_the_wealth_is_the_weighted_likelihood_ratio():
    target, outcomes = 0.1, [True, False, True, True]
    alarm = RiskAlarm(target, 0.05)
    for wrong in outcomes:
        alarm.update(wrong)
    expected = 1 / 5
    for part in (2.0**-i for i in range(1, 7)):
        p = target + (1 - target) * part
        for start in range(4):
            ratio = math.prod((p / target) if w else (1 - p) / (1 - target) for w in outcomes[start:])
            expected += ratio / ((start + 1) * (start + 2)) / 6
    assert alarm.wealth == pytest.approx(expected)
    assert (alarm.items, alarm.errors) == (4, 3)


def test_the_expected_wealth_at_the_target_is_one_and_below_it_less():
    def mean(error):
        total = 0.0
        for outcomes in itertools.product([False, True], repeat=6):
            alarm = RiskAlarm(0.2, 0.05)
            for wrong in outcomes:
                alarm.update(wrong)
            total += alarm.wealth * math.prod(error if w else 1 - error for w in outcomes)
        return total

    assert mean(0.2) == pytest.approx(1)
    assert mean(0.1) < 1 < mean(0.3)


def test_a_risk_at_the_target_rarely_alarms_and_one_far_above_always_does():
    rng = np.random.default_rng(0)
    level, runs = 0.1, 400

    def raised(error, items, before=0):
        alarm = RiskAlarm(0.1, level)
        for i in range(items):
            alarm.update(bool(rng.random() < (0.02 if i < before else error)))
            if alarm.raised:
                return i + 1
        return None

    false_alarms = sum(raised(0.1, 400) is not None for _ in range(runs))
    assert binomtest(false_alarms, runs, level, alternative="greater").pvalue > 0.01
    assert all(raised(0.6, 200) for _ in range(50))
    late = [raised(0.6, 700, before=500) for _ in range(30)]
    assert all(late)
    assert np.median(late) < 500 + 40, "a long good time does not hide a change"


def test_the_alarm_is_raised_before_mapies_confidence_sequence_is():
    """Against `RiskMonitoring` with the same threshold, on the same stream of wrong answers."""
    rng = np.random.default_rng(4)
    wrong = rng.random(600) < 0.4
    alarm = RiskAlarm(0.1, 0.025)
    ours = next(i for i, w in enumerate(wrong) if alarm.update(bool(w)) is None and alarm.raised)
    monitor = RiskMonitoring(risk="accuracy", test_level=0.05, threshold=0.1, warn=False)
    monitor.update(np.zeros(600, int), wrong.astype(int))
    theirs = int(np.argmax(monitor.online_risk_lower_bound_sequence_history > 0.1))
    assert theirs > 0
    assert ours < theirs


def test_the_wealth_is_mapies_jumper_on_the_same_p_values():
    rng = np.random.default_rng(1)
    alarm = ExchangeabilityAlarm(rng.random(50), 0.05)
    p_values = [alarm.update(float(v), float(t)) for v, t in rng.random((200, 2)) ** 2]
    theirs = OnlineMartingaleTest(task="regression", test_method="jumper_martingale")
    for p in p_values:
        value = theirs.update_simple_jumper_martingale(p)
    assert alarm.wealth == pytest.approx(value)


def test_p_values_of_exchangeable_values_are_uniform_also_with_ties():
    rng = np.random.default_rng(2)
    alarm = ExchangeabilityAlarm(rng.integers(0, 5, 30) / 5, 0.05)
    p_values = [alarm.update(float(rng.integers(0, 5) / 5), float(rng.random())) for _ in range(2000)]
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p_values[:-1], p_values[1:])[0, 1]) < 0.06


def test_the_same_domain_rarely_alarms_and_another_soon_does():
    rng = np.random.default_rng(3)
    level, runs = 0.1, 200

    def raised(a, b, items):
        alarm = ExchangeabilityAlarm(rng.beta(3.4, 1.6, 100), level)
        for i in range(items):
            alarm.update(rng.beta(a, b), rng.random())
            if alarm.raised:
                return i + 1
        return None

    false_alarms = sum(raised(3.4, 1.6, 300) is not None for _ in range(runs))
    assert binomtest(false_alarms, runs, level, alternative="greater").pvalue > 0.01
    delays = [raised(2, 3, 300) for _ in range(30)]
    assert all(delays)
    assert np.median(delays) < 60


def test_reference_values_may_come_later_and_are_not_bet_on():
    late, early = ExchangeabilityAlarm([0.1], 0.05), ExchangeabilityAlarm([0.1, 0.9], 0.05)
    late.add(0.9)
    assert late.items == 0
    assert late.update(0.5, 0.3) == early.update(0.5, 0.3) == pytest.approx(1.3 / 3)


@pytest.mark.parametrize("level", [0, 1])
def test_levels_are_checked(level):
    with pytest.raises(ValueError, match="level"):
        RiskAlarm(0.1, level)
    with pytest.raises(ValueError, match="level"):
        ExchangeabilityAlarm([], level)
