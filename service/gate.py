"""The gate: whether a predictive is certain enough to act on. Abstaining is an answer, not an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abmll.uncertainty import Predictive
    from service.confidence import Confidence

CONFIDENCE = "confidence_below_minimum"
MARGIN = "margin_below_minimum"
MUTUAL_INFORMATION = "mutual_information_above_maximum"
REASONS = (CONFIDENCE, MARGIN, MUTUAL_INFORMATION)


@dataclass(frozen=True)
class Thresholds:
    """What must hold to answer; None asks nothing. Mutual information in nats."""

    min_confidence: float | None = None
    min_margin: float | None = None
    max_mutual_information: float | None = None


def abstain_reason(predictive: Predictive, confidence: Confidence, gate: Thresholds) -> str | None:
    """The first condition that an answer fails, in the order of `REASONS`; None means answer."""
    if gate.min_confidence is not None and confidence.value < gate.min_confidence:
        return CONFIDENCE
    if gate.min_margin is not None and predictive.margin < gate.min_margin:
        return MARGIN
    information = predictive.uncertainty.mutual_information
    if gate.max_mutual_information is not None and information > gate.max_mutual_information:
        return MUTUAL_INFORMATION
    return None
