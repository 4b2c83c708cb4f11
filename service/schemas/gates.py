"""Calibrated gates: calibration and feedback.

Their fields of predict requests and answers are in `requests` and `predictions`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, Tag, model_validator

from service.schemas.fields import Options, Samples, Seed, Truncate
from service.schemas.questions import Case, CaseAnswer
from service.schemas.wire import WireModel, one_of

_EXAMPLE: dict[str, Any] = {
    "examples": [
        {"input": "My card was charged twice.", "output": "billing"},
        {"input": "Nobody was at home when it came.", "output": "delivery"},
    ],
    "options": ["billing", "delivery"],
}


_FEEDBACK_EXAMPLE: dict[str, Any] = {
    "feedback": [{"prediction_id": "pred_0123456789abcdef0123456789abcdef", "label": "billing"}]
}


def _kind_of_question(value: Any) -> str | None:
    kinds: dict[type, str] = {str: "<name>", int: "<index>", type(None): "<none>"}
    return kinds.get(type(value))


WantedQuestion = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[int, Tag("<index>")] | Annotated[None, Tag("<none>")],
    one_of(_kind_of_question, "the name or the index of a question"),
]


class LabelledRow(WireModel):
    """A labelled example, or a labelled input of a question."""

    input: str = Field(description="The text.")
    output: CaseAnswer = Field(
        description="Its label, one of the options; or, without options, the text to answer. For a question "
        "the answer as in cases, and null for an input that does not tell it."
    )
    options: list[str] | None = Field(
        default=None, description="Options of this example, in place of the request's."
    )


class CalibrateRequest(WireModel):
    """Labelled examples outside the adapter's support, drawn like the inputs of later predictions.

    An adapter of several questions has a calibration for each. Its examples are `examples` of one
    `question`, or `cases`.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    examples: list[LabelledRow] | None = Field(
        default=None, min_length=1, description="Labelled examples, at most `max_inputs`."
    )
    cases: list[Case] | None = Field(
        default=None,
        min_length=1,
        description="In place of `examples`: labelled inputs of the adapter's questions, at most `max_inputs`. "
        "Only answers to `question` count.",
    )
    question: WantedQuestion = Field(
        default=None,
        description="Question of the adapter, by its name or its index; by default the only one.",
    )
    options: Options = None
    samples: Samples = 16
    seed: Seed = 0
    truncate: Truncate = False
    max_new_tokens: int = Field(default=32, ge=1, description="Longest free-text answer, in tokens.")
    replace: bool = Field(
        default=False, description="Replace the calibration; by default the examples are added to it."
    )
    more_follow: bool = Field(
        default=False,
        description="Certify nothing until a request without `more_follow`. One set of examples in "
        "several requests then counts as one look at the labels, which certifies more "
        "than several looks.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.examples is None) == (self.cases is None):
            raise ValueError("exactly one of examples and cases is needed")
        return self


class CertificateReport(WireModel):
    """The certificate for one target error.

    Threshold, coverage and the other numbers exist only if it is certified.
    """

    target_error: float
    delta: float
    certified: bool
    threshold: float | None = None
    n: int | None = Field(default=None, description="Number of labels at the look that certified it.")
    accepted: int | None = Field(default=None, description="Number of these above the threshold.")
    errors: int | None = Field(default=None, description="Number of the accepted that were wrong.")
    coverage: float | None = None
    error_upper_bound: float | None = None
    about_n_more_labels: int | None = Field(
        default=None,
        description="Estimate of the missing labels if not certified; null if more labels of "
        "this kind do not help.",
    )


class SetReport(WireModel):
    """The guarantee of prediction sets at one alpha."""

    alpha: float
    valid_for_alpha: bool
    coverage: float
    n: int


class MonitoringReport(WireModel):
    """Predictions and labels since the calibration began, and the drift alarms.

    An alarm whose wealth reaches 1 / `alarm_delta` revokes the certificates.
    """

    logged: int
    asked: int = Field(description="Number of predictions whose labels are requested, by a random choice.")
    labelled: int
    risk_wealth: float = Field(
        description="Evidence that given answers are wrong more often than the target; 1 is no evidence."
    )
    domain_wealth: float = Field(
        description="Evidence that inputs differ from those of the calibration; 1 is no evidence."
    )


class CalibratedQuestion(WireModel):
    """A question of an adapter."""

    index: int = Field(description="Position among the adapter's questions, from 0.")
    name: str | None = None
    instruction: str


class Calibration(WireModel):
    """The present state of the calibration of an adapter, or of one of its questions."""

    id: str
    object: Literal["calibration"] = "calibration"
    adapter_id: str
    version: int
    state: Literal["active", "incomplete", "revoked"]
    revoked_reason: str | None = None
    n: int = Field(description="Number of labelled outcomes.")
    feedback: int = Field(description="Number of these that are requested labels of predictions.")
    accuracy: float | None = None
    confidence_kind: str
    samples: int | Literal["auto"]
    seed: int
    max_new_tokens: int | None = None
    certificates: list[CertificateReport]
    sets: list[SetReport]
    monitoring: MonitoringReport
    warnings: list[str]
    question: CalibratedQuestion | None = Field(
        default=None, description="What is calibrated, for an adapter of cases."
    )


class QuestionCalibrations(WireModel):
    """The calibrations of an adapter of cases, of those of its questions that have one."""

    adapter_id: str
    object: Literal["calibrations"] = "calibrations"
    questions: list[Calibration]


class DeletedCalibration(WireModel):
    """A calibration that was deleted."""

    adapter_id: str
    object: Literal["calibration"] = "calibration"
    deleted: Literal[True] = True


class FeedbackRow(WireModel):
    """The label of a logged prediction."""

    prediction_id: str
    label: CaseAnswer = Field(description="The right answer; for a question as in cases.")


class FeedbackRequest(WireModel):
    """Labels of predictions, in the order in which they became known."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FEEDBACK_EXAMPLE]})

    feedback: list[FeedbackRow] = Field(min_length=1, description="At most `max_inputs`.")


class FeedbackResponse(WireModel):
    """Numbers of stored labels, and the calibration with them."""

    stored: int = Field(description="Number of new labels.")
    asked: int = Field(
        description="Number of new labels that were requested: these recalibrate the gate and "
        "update the alarm."
    )
    known: int = Field(
        description="Number of labels for predictions that had one already; the first one counts."
    )
    contradicted: list[str] = Field(
        description="Ids of predictions whose first label says right and a later one wrong, or the "
        "other way round. The first stays."
    )
    calibration: Calibration = Field(
        description="The calibration that the labels belong to; the first label's, where there are several."
    )
    calibrations: list[Calibration] | None = Field(
        default=None, description="All of them, where the labels are of several questions."
    )
