"""The confidence of an answer: one number that gates act on, and its kind (docs/confidence.md)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from abmll.text.tasks import Query, QuestionKey, question_key
from service.errors import InvalidRequestError

if TYPE_CHECKING:
    from abmll.prediction.uncertainty import Predictive

PREDICTIVE, CALIBRATED = "predictive", "calibrated"
WantedConfidence: TypeAlias = Literal["predictive", "calibrated"] | None
HELD_OUT = "held_out"
"""Names the source of a calibrated confidence: the adapter's own held-out examples."""


@dataclass(frozen=True)
class Confidence:
    """Probability of an answer in the posterior predictive, in [0, 1].

    `kind` is "calibrated" where the predictive has the adapter's own temperature
    (`abmll.assurance.held_out`); the value is then the probability that the answer is right.
    Otherwise it is "predictive".
    """

    value: float
    kind: str = PREDICTIVE

    @property
    def function(self) -> str:
        """Return the name of the function computed; only equal ones may be compared."""
        return f"{CALIBRATED}:{HELD_OUT}" if self.kind == CALIBRATED else self.kind


def confidence_kinds(
    wanted: WantedConfidence,
    queries: Sequence[Query],
    *,
    own_temperature: bool,
    questions: Container[QuestionKey] | None = None,
) -> list[str]:
    """Return the kind of confidence of each query's answer.

    It is calibrated where the adapter has its own temperature and the query has options and one of
    its `questions` (None: any), unless a predictive one is wanted. Raises `InvalidRequestError`
    where a calibrated one is wanted and there is none.
    """
    known = [questions is None or question_key(query) in questions for query in queries]
    if wanted == CALIBRATED:
        if not own_temperature:
            raise InvalidRequestError(
                "there is no calibrated confidence: the adapter was made without calibration_folds",
                "confidence",
            )
        if not all(query.options for query in queries):
            raise InvalidRequestError("there is no calibrated confidence: free text has none", "confidence")
        if not all(known):
            asked = queries[known.index(False)].instruction
            message = (
                f"there is no calibrated confidence: the adapter has no cases of the question {asked!r:.80}"
            )
            raise InvalidRequestError(message, "confidence")
    calibrated = own_temperature and wanted != PREDICTIVE
    return [
        CALIBRATED if calibrated and query.options and of_adapter else PREDICTIVE
        for query, of_adapter in zip(queries, known, strict=True)
    ]


def confidence_of(predictive: Predictive, kind: str) -> Confidence:
    """Return the confidence of the answer; with a single option it is predictive."""
    return Confidence(predictive.confidence, kind if len(predictive.options) > 1 else PREDICTIVE)
