"""A calibrator evaluates to what it says, survives JSON, and refuses what is not one."""

import json
import math
from dataclasses import replace

import pytest

from abmll.calibrator import FEATURES, Calibrator, Shown, features
from abmll.errors import AbmllError
from abmll.prediction.uncertainty import Predictive, Uncertainty

PREDICTIVE = Predictive(("x", "y", "z"), (0.2, 0.7, 0.1), (0.0,) * 3, Uncertainty(0.8, 0.6, 0.2, 0.0), 8)


def make_calibrator(intercept: float = 0.0, **coefficients: float) -> Calibrator:
    values = {name: coefficients.get(name, 0.0) for name in FEATURES}
    return Calibrator("d" * 64, intercept, values, 8, {"tasks": ["one"]})


def test_the_features_of_a_prediction() -> None:
    found = dict(zip(FEATURES, features(PREDICTIVE, 16, Shown(3, 4)), strict=True))
    assert found == pytest.approx(
        {
            "top_logit": math.log(7 / 3),
            "margin": 0.5,
            "mutual_information": 0.2 / math.log(3),
            "log_options": math.log(3),
            "log_support": math.log(16),
            "held_out_logit": math.log(3.5 / 1.5),
            "held_out_unknown": 0.0,
        }
    )
    assert features(PREDICTIVE, 16, None)[-2:] == (0.0, 1.0)


@pytest.mark.parametrize("top", [0.0, 1.0])
def test_certainty_stays_finite(top: float) -> None:
    certain = replace(PREDICTIVE, probabilities=(top, top, top))
    assert all(map(math.isfinite, features(certain, 0, Shown(0, 4))))
    for slope in (1e6, -1e6):
        assert 0 <= make_calibrator(top_logit=slope).confidence(certain, 1, None) <= 1


def test_the_identity_gives_the_top_probability_back() -> None:
    assert make_calibrator(top_logit=1.0).confidence(PREDICTIVE, 16, None) == pytest.approx(0.7)


def test_confidence_is_the_sigmoid_of_the_weighted_sum() -> None:
    calibrator = make_calibrator(0.3, margin=2.0, held_out_logit=0.5, held_out_unknown=-1.0)
    known = 0.3 + 2 * 0.5 + 0.5 * math.log(3.5 / 1.5)
    assert calibrator.confidence(PREDICTIVE, 16, Shown(3, 4)) == pytest.approx(1 / (1 + math.exp(-known)))
    assert calibrator.confidence(PREDICTIVE, 16, None) == pytest.approx(1 / (1 + math.exp(-0.3)))


def test_it_covers_choices_with_enough_samples_only() -> None:
    calibrator = make_calibrator()
    assert calibrator.covers(PREDICTIVE)
    assert not calibrator.covers(replace(PREDICTIVE, samples=7))
    assert not calibrator.covers(replace(PREDICTIVE, options=("x",), probabilities=(1.0,), stds=(0.0,)))


def test_it_survives_json_with_its_digest() -> None:
    calibrator = make_calibrator(0.1, top_logit=1 / 3)
    again = Calibrator.from_json(json.loads(json.dumps(calibrator.to_json())))
    assert (again, again.id) == (calibrator, calibrator.id)
    assert make_calibrator(0.1, top_logit=1 / 3 + 1e-16 * 4).id != calibrator.id


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"intercept": 9.0},
        {"digest": "0" * 64},
        {"coefficients": {"top_logit": 1.0}},
        {"coefficients": [1.0]},
        {"intercept": "much"},
        {"fitted": None},
        {"posterior_digest": "e" * 64},
    ],
)
def test_what_is_not_one_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(AbmllError, match="calibrator"):
        Calibrator.from_json({**make_calibrator().to_json(), **change})


def test_coefficients_are_finite() -> None:
    with pytest.raises(AbmllError, match="finite"):
        make_calibrator(margin=math.nan)
