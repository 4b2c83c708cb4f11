"""The decision about one prediction: answer or abstain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from abmll.prediction.settings import Thresholds

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction
    from abmll.prediction.semantic import TextAnswer
    from service.gating.confidence import Confidence

CONFIDENCE = "confidence_below_minimum"
MARGIN = "margin_below_minimum"
MUTUAL_INFORMATION = "mutual_information_above_maximum"
TYPICALITY = "typicality_below_minimum"
ANSWERABLE = "answerable_below_minimum"
SEMANTIC_ENTROPY = "semantic_entropy_above_maximum"
LOGPROB_PER_TOKEN = "logprob_per_token_below_minimum"  # noqa: S105 - no password
REASONS = (
    CONFIDENCE,
    MARGIN,
    MUTUAL_INFORMATION,
    TYPICALITY,
    ANSWERABLE,
    SEMANTIC_ENTROPY,
    LOGPROB_PER_TOKEN,
)


@dataclass(frozen=True)
class DecidedPrediction:
    """A prediction, its confidence, and the decision: `abstain_reason` None means answer.

    The other fields are None unless the gate needs a calibration. `prediction_id` names the
    prediction in feedback; it is None as well where the calibration was deleted or replaced
    meanwhile, so that nothing was logged. `label_asked` says whether the prediction was drawn as
    one whose label is asked for. `options_in_set` is the prediction set, if one was asked for.
    """

    prediction: Prediction
    confidence: Confidence
    abstain_reason: str | None = None
    prediction_id: str | None = None
    label_asked: bool | None = None
    options_in_set: tuple[str, ...] | None = None

    @property
    def decision(self) -> Literal["answer", "abstain"]:
        """Return `answer` or `abstain`."""
        return "answer" if self.abstain_reason is None else "abstain"


def decide(prediction: Prediction, confidence: Confidence, thresholds: Thresholds) -> DecidedPrediction:
    """Return `prediction` with the decision by `thresholds`."""
    return DecidedPrediction(prediction, confidence, abstain_reason(prediction, confidence, thresholds))


def abstain_reason(prediction: Prediction, confidence: Confidence, thresholds: Thresholds) -> str | None:
    """Return the first threshold that an answer fails, in the order of `REASONS`, or None.

    Free text has two mutual informations, that of the predictive and that of the meanings. The
    larger one counts: the first is small where the candidates have little probability, however much
    the samples disagree, and the second is small where all samples wrote the same.
    """
    predictive, text = prediction.predictive, prediction.text
    information = predictive.uncertainty.mutual_information
    if text is not None:
        information = max(information, text.entropy.mutual_information)
    if _below(confidence.value, thresholds.min_confidence):
        return CONFIDENCE
    if _below(predictive.margin, thresholds.min_margin):
        return MARGIN
    if thresholds.max_mutual_information is not None and information > thresholds.max_mutual_information:
        return MUTUAL_INFORMATION
    if _missing_or_below(prediction.typicality, thresholds.min_typicality):
        return TYPICALITY
    if _missing_or_below(prediction.answerable, thresholds.min_answerable):
        return ANSWERABLE
    return _text_reason(text, thresholds) if text is not None else None


def _text_reason(text: TextAnswer, thresholds: Thresholds) -> str | None:
    most = thresholds.max_semantic_entropy
    if most is not None and text.entropy.total > most:
        return SEMANTIC_ENTROPY
    return LOGPROB_PER_TOKEN if _below(text.logprob_per_token, thresholds.min_logprob_per_token) else None


def _below(value: float, least: float | None) -> bool:
    return least is not None and value < least


def _missing_or_below(value: float | None, least: float | None) -> bool:
    return least is not None and (value is None or value < least)
