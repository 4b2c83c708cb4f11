"""The mean NLL at the temperatures that held-out answers choose, and the rule of the posterior."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from abmll.assurance.folds import HeldOutAnswer
from abmll.assurance.held_out import temperature_factor
from abmll.decoder.layout import Site
from abmll.posterior.config import TemperatureRule
from abmll.posterior.posteriors import GlobalPosterior
from benchmarks.fold_spread import key_of, mean_nll, rule_since
from lab.evaluation.temperature_scaling import Rule
from model_store.tensors import posterior_digest
from tests.benchmarks.test_answers import result
from tests.tiny import make_config


def test_a_spread_of_zero_leaves_the_posteriors_temperature_and_others_take_that_of_the_folds() -> None:
    cells = [result("one", [0.9], [1]), result("two", [0.6], [1])]
    wrong = [HeldOutAnswer(i, (0.2, 0.8), 0) for i in range(4)]
    estimates = {key_of(cells[0]): wrong, key_of(cells[1]): []}
    assert float(mean_nll(cells, estimates, 0)) == pytest.approx(-math.log(0.9 * 0.6) / 2, abs=1e-4)
    factor = temperature_factor(wrong, 0.5)
    assert factor > 1
    flattened = 1 / (1 + (0.1 / 0.9) ** (1 / factor))
    assert float(mean_nll(cells, estimates, 0.5)) == pytest.approx(-math.log(flattened * 0.6) / 2, abs=1e-4)


def test_answers_from_before_the_temperature_get_it_and_those_of_another_posterior_are_refused() -> None:
    rule = TemperatureRule(2.0, 0.5, 3.0)
    plain = GlobalPosterior.untrained(make_config(), [Site(0, "q", 4, 4)])
    served = replace(plain, config=replace(plain.config, temperature=rule))

    def of(digest: str) -> Any:
        return SimpleNamespace(about={"digest": digest}, method="ours", source=Path("answers.json.gz"))

    assert rule_since(served, of(posterior_digest(served))) == Rule()
    assert rule_since(served, of(posterior_digest(plain))) == Rule(2.0, 0.5, 3.0)
    with pytest.raises(SystemExit, match="another posterior"):
        rule_since(served, of("d"))
