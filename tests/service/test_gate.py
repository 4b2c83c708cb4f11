from __future__ import annotations

import pytest

from abmll.uncertainty import Predictive, Uncertainty
from service.confidence import confidence_of
from service.gate import CONFIDENCE, MARGIN, MUTUAL_INFORMATION, Thresholds, abstain_reason

PREDICTIVE = Predictive(
    options=("yes", "no", "maybe"),
    probabilities=(0.6, 0.3, 0.1),
    stds=(0.0, 0.0, 0.0),
    uncertainty=Uncertainty(
        total_entropy=0.9, expected_entropy=0.7, mutual_information=0.2, mc_standard_error=0.0
    ),
    samples=4,
)


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (Thresholds(), None),
        (Thresholds(min_confidence=0.6), None),
        (Thresholds(min_confidence=0.61), CONFIDENCE),
        (Thresholds(min_margin=0.29), None),
        (Thresholds(min_margin=0.31), MARGIN),
        (Thresholds(max_mutual_information=0.2), None),
        (Thresholds(max_mutual_information=0.19), MUTUAL_INFORMATION),
        (Thresholds(min_confidence=0.9, min_margin=0.9, max_mutual_information=0.0), CONFIDENCE),
        (Thresholds(min_margin=0.9, max_mutual_information=0.0), MARGIN),
    ],
)
def test_the_first_condition_that_fails_is_the_reason(gate: Thresholds, reason: str | None) -> None:
    assert abstain_reason(PREDICTIVE, confidence_of(PREDICTIVE), gate) == reason
