"""The gate: whether a predictive is certain enough to act on. Abstaining is an answer, not an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abmll.prediction.semantic import TextAnswer
    from abmll.prediction.uncertainty import Predictive
    from service.gating.confidence import Confidence

CONFIDENCE = "confidence_below_minimum"
MARGIN = "margin_below_minimum"
MUTUAL_INFORMATION = "mutual_information_above_maximum"
TYPICALITY = "typicality_below_minimum"
SEMANTIC_ENTROPY = "semantic_entropy_above_maximum"
LOGPROB_PER_TOKEN = "logprob_per_token_below_minimum"  # noqa: S105 - no password
REASONS = (CONFIDENCE, MARGIN, MUTUAL_INFORMATION, TYPICALITY, SEMANTIC_ENTROPY, LOGPROB_PER_TOKEN)


@dataclass(frozen=True)
class Thresholds:
    """What must hold to answer; None asks nothing. Information, entropy and log-probability in nats.

    `max_semantic_entropy` and `min_logprob_per_token` are about free text and ask nothing of an answer that was chosen from
    options. An input whose typicality is not known fails `min_typicality`.
    """

    min_confidence: float | None = None
    min_margin: float | None = None
    max_mutual_information: float | None = None
    max_semantic_entropy: float | None = None
    min_logprob_per_token: float | None = None
    min_typicality: float | None = None

    @property
    def of_text(self) -> bool:
        """Whether a condition is about free text."""
        return self.max_semantic_entropy is not None or self.min_logprob_per_token is not None


def abstain_reason(
    predictive: Predictive,
    confidence: Confidence,
    gate: Thresholds,
    text: TextAnswer | None = None,
    typicality: float | None = None,
) -> str | None:
    """The first condition that an answer fails, in the order of `REASONS`; None means answer.

    With `text` (free text) the mutual information is the larger of the predictive's and the semantic one. The first is small
    when the candidates have little probability, however much the samples disagree; the second when all samples wrote the same.
    """
    if gate.min_confidence is not None and confidence.value < gate.min_confidence:
        return CONFIDENCE
    if gate.min_margin is not None and predictive.margin < gate.min_margin:
        return MARGIN
    information = predictive.uncertainty.mutual_information
    if text is not None:
        information = max(information, text.entropy.mutual_information)
    if gate.max_mutual_information is not None and information > gate.max_mutual_information:
        return MUTUAL_INFORMATION
    if gate.min_typicality is not None and (typicality is None or typicality < gate.min_typicality):
        return TYPICALITY
    return _text_reason(text, gate) if text is not None else None


def _text_reason(text: TextAnswer, gate: Thresholds) -> str | None:
    if gate.max_semantic_entropy is not None and text.entropy.total > gate.max_semantic_entropy:
        return SEMANTIC_ENTROPY
    if gate.min_logprob_per_token is not None and text.logprob_per_token < gate.min_logprob_per_token:
        return LOGPROB_PER_TOKEN
    return None
