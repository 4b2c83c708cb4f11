"""Calibrated gates: an adapter's calibration, and what became of feedback."""

from __future__ import annotations

from typing import Literal

from abmll_client.models.answer import Answer


class CertificateReport(Answer):
    """What can be certified for one target error; the fields with None are there only if it can."""

    target_error: float
    delta: float
    certified: bool
    threshold: float | None = None
    n: int | None = None  # labels at the look that certified it
    accepted: int | None = None  # of these, those above the threshold
    errors: int | None = None  # of the accepted, those that were wrong
    coverage: float | None = None
    error_upper_bound: float | None = None
    about_n_more_labels: int | None = None  # if not certified, and more labels promise to help


class SetReport(Answer):
    """What prediction sets can promise at one alpha."""

    alpha: float
    valid_for_alpha: bool
    coverage: float
    n: int


class MonitoringReport(Answer):
    """Predictions and labels since the calibration began, and the evidence of its alarms.

    An alarm revokes the calibration once its wealth reaches 1 / `alarm_delta`; 1 is no evidence.
    """

    logged: int
    asked: int  # predictions of the random sample whose labels are asked for
    labelled: int
    risk_wealth: float  # that accepted answers are wrong more often than targeted
    domain_wealth: float  # that inputs look otherwise than in the calibration


class CalibratedQuestion(Answer):
    """A question of an adapter; `index` is its position, from 0."""

    index: int
    name: str | None = None
    instruction: str


class Calibration(Answer):
    """The calibration of an adapter, or of one of its questions, as it stands."""

    id: str
    object: Literal["calibration"] = "calibration"
    adapter_id: str
    version: int
    state: Literal["active", "incomplete", "revoked"]
    revoked_reason: str | None = None
    n: int  # labelled outcomes
    feedback: int  # of these, labels of the random sample
    accuracy: float | None = None
    confidence_kind: str
    samples: int | Literal["auto"]
    seed: int
    max_new_tokens: int | None = None
    certificates: list[CertificateReport]
    sets: list[SetReport]
    monitoring: MonitoringReport
    warnings: list[str]
    question: CalibratedQuestion | None = None  # of an adapter of cases


class DeletedCalibration(Answer):
    """Says that an adapter's calibration was deleted."""

    adapter_id: str
    object: Literal["calibration"] = "calibration"
    deleted: Literal[True] = True


class FeedbackResponse(Answer):
    """What became of labels that were sent as feedback."""

    stored: int  # labels that are new
    asked: int  # of these, labels of the random sample: they move the gate and feed the alarms
    known: int  # labels of predictions that had one already; the first counts
    contradicted: list[str]  # predictions whose first label, which stays, says the opposite
    calibration: Calibration  # of the first label, where labels are of several questions
    calibrations: list[Calibration] | None = None  # all of them then
