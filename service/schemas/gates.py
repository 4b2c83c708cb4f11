"""Calibrated gates: calibration and feedback.

Their fields of predict requests and answers are in `requests` and `predictions`.
"""

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
    """Labelled examples outside the adapter's support, drawn like the inputs of later predictions."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    examples: list[SupportRow] = Field(min_length=1, description="Labelled examples, at most `max_inputs`.")
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
        description="Estimate of the missing labels if not certified; absent if more labels of "
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


class Calibration(WireModel):
    """The present state of an adapter's calibration."""

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


class DeletedCalibration(WireModel):
    """A calibration that was deleted."""

    adapter_id: str
    object: Literal["calibration"] = "calibration"
    deleted: Literal[True] = True


class FeedbackRow(WireModel):
    """The label of a logged prediction."""

    prediction_id: str
    label: str


class FeedbackRequest(WireModel):
    """Labels of predictions, in the order in which they became known."""

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
    calibration: Calibration
