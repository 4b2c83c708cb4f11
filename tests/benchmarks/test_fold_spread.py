"""The mean over tasks at the temperatures that held-out answers choose."""

import math

import pytest

from abmll.assurance.folds import HeldOutAnswer
from abmll.assurance.held_out import temperature_factor
from benchmarks.fold_spread import key_of, mean_nll
from tests.benchmarks.test_answers import result


def test_a_spread_of_zero_is_the_posteriors_temperature_and_others_that_of_the_folds() -> None:
    cells = [result("one", [0.9], [1]), result("two", [0.6], [1])]
    wrong = [HeldOutAnswer(i, (0.2, 0.8), 0) for i in range(4)]
    estimates = {key_of(cells[0]): wrong, key_of(cells[1]): []}
    assert float(mean_nll(cells, estimates, 0)) == pytest.approx(-math.log(0.9 * 0.6) / 2, abs=1e-4)
    factor = temperature_factor(wrong, 0.5)
    assert factor > 1
    flattened = 1 / (1 + (0.1 / 0.9) ** (1 / factor))
    assert float(mean_nll(cells, estimates, 0.5)) == pytest.approx(-math.log(flattened * 0.6) / 2, abs=1e-4)
