from __future__ import annotations

from dataclasses import replace

import pytest

from abmll.prediction.run import Prediction
from abmll.prediction.semantic import Cluster, SemanticEntropy, TextAnswer
from abmll.prediction.settings import Thresholds
from abmll.prediction.uncertainty import Predictive, Uncertainty
from service.gating.confidence import Confidence
from service.gating.decisions import (
    ANSWERABLE,
    CONFIDENCE,
    LOGPROB_PER_TOKEN,
    MARGIN,
    MUTUAL_INFORMATION,
    SEMANTIC_ENTROPY,
    TYPICALITY,
    abstain_reason,
    decide,
)

PREDICTIVE = Predictive(
    options=("yes", "no", "maybe"),
    probabilities=(0.6, 0.3, 0.1),
    stds=(0.0, 0.0, 0.0),
    uncertainty=Uncertainty(
        total_entropy=0.9, expected_entropy=0.7, mutual_information=0.2, mc_standard_error=0.0
    ),
    samples=4,
)
CERTAINTY = Confidence(PREDICTIVE.confidence)


def predicted(text: TextAnswer | None = None, typicality: float | None = None) -> Prediction:
    return Prediction(PREDICTIVE, 5, 0, text=text, typicality=typicality)


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
    assert abstain_reason(predicted(), CERTAINTY, gate) == reason


@pytest.mark.parametrize(("answerable", "reason"), [(0.1, None), (0.09, ANSWERABLE), (None, ANSWERABLE)])
def test_an_input_that_may_not_tell_the_answer_abstains(answerable: float | None, reason: str | None) -> None:
    prediction, gate = replace(predicted(), answerable=answerable), Thresholds(min_answerable=0.1)
    assert abstain_reason(prediction, CERTAINTY, gate) == reason
    assert abstain_reason(prediction, CERTAINTY, Thresholds()) is None
    both = replace(gate, min_typicality=0.5)
    assert abstain_reason(prediction, CERTAINTY, both) == TYPICALITY


@pytest.mark.parametrize(("typicality", "reason"), [(0.1, None), (0.09, TYPICALITY), (None, TYPICALITY)])
def test_an_input_unlike_the_examples_or_not_known_to_be_like_them_abstains(
    typicality: float | None, reason: str | None
) -> None:
    prediction, gate = predicted(typicality=typicality), Thresholds(min_typicality=0.1)
    assert abstain_reason(prediction, CERTAINTY, gate) == reason
    assert abstain_reason(prediction, CERTAINTY, Thresholds()) is None


def text(information: float = 0.1) -> TextAnswer:
    entropy = SemanticEntropy(total=0.5, expected=0.4, mutual_information=information)
    clusters = (Cluster(("yes", "Yes"), 0.6, 0.7), Cluster(("no",), 0.3, 0.3))
    return TextAnswer(sequence_logprob=-2.0, tokens=4, complete=True, entropy=entropy, clusters=clusters)


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (Thresholds(max_semantic_entropy=0.5), None),
        (Thresholds(max_semantic_entropy=0.49), SEMANTIC_ENTROPY),
        (Thresholds(min_logprob_per_token=-0.5), None),
        (Thresholds(min_logprob_per_token=-0.49), LOGPROB_PER_TOKEN),
        (Thresholds(max_semantic_entropy=0.0, min_logprob_per_token=0.0), SEMANTIC_ENTROPY),
        (Thresholds(max_mutual_information=0.0, max_semantic_entropy=0.0), MUTUAL_INFORMATION),
        (Thresholds(min_confidence=0.61, max_semantic_entropy=0.0), CONFIDENCE),
    ],
)
def test_conditions_on_free_text_come_after_the_others(gate: Thresholds, reason: str | None) -> None:
    assert abstain_reason(predicted(text()), CERTAINTY, gate) == reason


def test_of_two_informations_the_larger_counts() -> None:
    gate = Thresholds(max_mutual_information=0.25)
    assert abstain_reason(predicted(text(0.1)), CERTAINTY, gate) is None
    assert abstain_reason(predicted(text(0.3)), CERTAINTY, gate) == MUTUAL_INFORMATION
    strict = Thresholds(max_mutual_information=0.15)
    assert abstain_reason(predicted(text(0.1)), CERTAINTY, strict) == MUTUAL_INFORMATION


def test_conditions_on_free_text_ask_nothing_of_options() -> None:
    gate = Thresholds(max_semantic_entropy=0.0, min_logprob_per_token=0.0)
    assert abstain_reason(predicted(), CERTAINTY, gate) is None


def test_the_decision_follows_the_reason() -> None:
    answered = decide(predicted(), CERTAINTY, Thresholds())
    assert (answered.decision, answered.abstain_reason) == ("answer", None)
    abstained = decide(predicted(), CERTAINTY, Thresholds(min_confidence=0.9))
    assert (abstained.decision, abstained.abstain_reason) == ("abstain", CONFIDENCE)
