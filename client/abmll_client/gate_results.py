"""What an app's gate returns for an input, counts over inputs, and gives as a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from abmll_client.predictors import ModelAnswer

Source = Literal["model", "fallback", "human"]

# The server's words, in the order in which conditions are looked at.
CONFIDENCE = "confidence_below_minimum"
MARGIN = "margin_below_minimum"
MUTUAL_INFORMATION = "mutual_information_above_maximum"


@dataclass(frozen=True)
class GateResult:
    """Whose answer was taken for one input.

    `answer` is None while a human has the input. `reason` says why the model's answer was not
    taken, and is None where it was.
    """

    text: str
    answer: Any
    source: Source
    model_answer: ModelAnswer
    reason: str | None = None


@dataclass(frozen=True)
class GateStatistics:
    """Counts since the gate was made; ratios are None as long as there is nothing to count.

    `labelled` and `correct` count accepted answers whose label was recorded.
    """

    seen: int = 0
    accepted: int = 0
    fallen_back: int = 0
    queued: int = 0
    failed_fallbacks: int = 0
    total_confidence: float = 0.0
    labelled: int = 0
    correct: int = 0

    @property
    def coverage(self) -> float | None:
        """Fraction of inputs for which the model's answer was taken."""
        return _ratio(self.accepted, self.seen)

    @property
    def mean_confidence(self) -> float | None:
        """Mean confidence of the model's answers, taken or not."""
        return _ratio(self.total_confidence, self.seen)

    @property
    def accuracy(self) -> float | None:
        """Fraction of right answers among the accepted ones whose label is known."""
        return _ratio(self.correct, self.labelled)


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
