"""The decision about one prediction: answer or abstain. Abstaining is an answer, not an error."""

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
SEMANTIC_ENTROPY = "semantic_entropy_above_maximum"
LOGPROB_PER_TOKEN = "logprob_per_token_below_minimum"  # noqa: S105 - no password
REASONS = (CONFIDENCE, MARGIN, MUTUAL_INFORMATION, TYPICALITY, SEMANTIC_ENTROPY, LOGPROB_PER_TOKEN)


@dataclass(frozen=True)
class PredictionNote:
    """What the log of a calibrated adapter adds to a prediction.

    `id` is None where the calibration was deleted or replaced meanwhile, so that nothing was logged.
    `asked` says whether the prediction is of the random share whose labels are asked for.
    """

    id: str | None
    asked: bool
    options_in_set: tuple[str, ...] | None


@dataclass(frozen=True)
class DecidedPrediction:
    """A prediction, how sure its answer is, and the decision. `abstain_reason` None means answer."""

    prediction: Prediction
    confidence: Confidence
    abstain_reason: str | None = None
    note: PredictionNote | None = None

    @property
    def decision(self) -> Literal["answer", "abstain"]:
        """`answer` or `abstain`."""
        return "answer" if self.abstain_reason is None else "abstain"


def decide(prediction: Prediction, confidence: Confidence, thresholds: Thresholds) -> DecidedPrediction:
    """`prediction` with the decision that `thresholds` make."""
    return DecidedPrediction(prediction, confidence, abstain_reason(prediction, confidence, thresholds))


def abstain_reason(prediction: Prediction, confidence: Confidence, thresholds: Thresholds) -> str | None:
    """The first threshold that an answer fails, in the order of `REASONS`; None means answer.

    Free text is judged by the larger of two mutual informations, the predictive's and the semantic
    one. The first is small when the candidates have little probability, however much the samples
    disagree; the second when all samples wrote the same.
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
    if thresholds.min_typicality is not None and (
        prediction.typicality is None or prediction.typicality < thresholds.min_typicality
    ):
        return TYPICALITY
    return _text_reason(text, thresholds) if text is not None else None


def _text_reason(text: TextAnswer, thresholds: Thresholds) -> str | None:
    most = thresholds.max_semantic_entropy
    if most is not None and text.entropy.total > most:
        return SEMANTIC_ENTROPY
    return LOGPROB_PER_TOKEN if _below(text.logprob_per_token, thresholds.min_logprob_per_token) else None


def _below(value: float, least: float | None) -> bool:
    return least is not None and value < least
