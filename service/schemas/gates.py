"""The wire of calibrated gates: calibration and feedback. What predict requests and answers have of it is with them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from service.schemas.fields import Options, Samples, Seed, SupportRow, Truncate
from service.schemas.wire import WireModel

_EXAMPLE: dict[str, Any] = {
    "examples": [
        {"input": "My card was charged twice.", "output": "billing"},
        {"input": "Nobody was at home when it came.", "output": "delivery"},
    ],
    "options": ["billing", "delivery"],
}


class CalibrateRequest(WireModel):
    """Labelled examples that the adapter was not made from, drawn as the inputs it will be asked are."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    examples: list[SupportRow] = Field(min_length=1, description="Labelled examples, at most `max_inputs`.")
    options: Options = None
    samples: Samples = 16
    seed: Seed = 0
    truncate: Truncate = False
    max_new_tokens: int = Field(default=32, ge=1, description="Longest free-text answer, in tokens.")
    replace: bool = Field(default=False, description="Begin anew instead of adding to what is there.")
    more_follow: bool = Field(
        default=False,
        description="Certify nothing before a call without it: where one set of examples takes several requests, "
        "they then count as one look at the labels, which certifies more than several.",
    )


class CertificateReport(WireModel):
    """What can be certified for one target error; threshold, coverage and the rest only if it can."""

    target_error: float
    delta: float
    certified: bool
    threshold: float | None = None
    n: int | None = Field(default=None, description="Labels at the look that certified it.")
    accepted: int | None = Field(default=None, description="Of these, those above the threshold.")
    errors: int | None = Field(default=None, description="Of the accepted, those that were wrong.")
    coverage: float | None = None
    error_upper_bound: float | None = None
    about_n_more_labels: int | None = Field(
        default=None, description="If not certified; absent where more of the same kind promise nothing."
    )


class SetReport(WireModel):
    """What prediction sets can promise at one alpha."""

    alpha: float
    valid_for_alpha: bool
    coverage: float
    n: int


class MonitoringReport(WireModel):
    """Predictions and labels since the calibration began, and the alarms, which revoke at 1 / `alarm_delta`."""

    logged: int
    asked: int = Field(description="Predictions of the random share, whose labels are asked for.")
    labelled: int
    risk_wealth: float = Field(
        description="Evidence that accepted answers are wrong more often than targeted; 1 is none."
    )
    domain_wealth: float = Field(
        description="Evidence that inputs look otherwise than in the calibration; 1 is none."
    )


class Calibration(WireModel):
    """An adapter's calibration as it stands."""

    id: str
    object: Literal["calibration"] = "calibration"
    adapter_id: str
    version: int
    state: Literal["active", "incomplete", "revoked"]
    revoked_reason: str | None = None
    n: int = Field(description="Labelled outcomes.")
    feedback: int = Field(description="Of these, labels of the random share.")
    accuracy: float | None = None
    confidence_kind: str
    samples: int | Literal["auto"]
    seed: int
    max_new_tokens: int | None = None
    certificates: list[CertificateReport]
    sets: list[SetReport]
    monitoring: MonitoringReport
    warnings: list[str]


class DeletedCalibration(WireModel):
    """Confirmation."""

    adapter_id: str
    object: Literal["calibration"] = "calibration"
    deleted: Literal[True] = True


class FeedbackRow(WireModel):
    """The right answer to a logged prediction."""

    prediction_id: str
    label: str


class FeedbackRequest(WireModel):
    """Labels, in the order in which they became known."""

    feedback: list[FeedbackRow] = Field(min_length=1, description="At most `max_inputs`.")


class FeedbackResponse(WireModel):
    """What became of them."""

    stored: int = Field(description="Labels that are new.")
    asked: int = Field(
        description="Of these, those of the random share: they recalibrate the gate and feed the alarm."
    )
    known: int = Field(description="Labels of predictions that had one; the first counts.")
    calibration: Calibration
