"""Renders gates, their calibrations and feedback for the native wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from abmll.assurance.certificates import Certificate, CoverageThreshold, NotYet
from service import schemas
from service.gating.records import USUAL_DELTA, CalibratedGate, CalibrationView, FeedbackOutcome

if TYPE_CHECKING:
    from service.gating.questions import AdapterQuestion


def gate_report(gate: CalibratedGate) -> schemas.GateReport | None:
    """Render a calibrated gate; None if the request's own thresholds decided."""
    threshold = gate.threshold
    if threshold is None:
        return None
    report = schemas.GateReport(
        calibration_id=gate.calibration_id,
        version=gate.version,
        threshold=threshold.threshold,
        n=threshold.n,
        coverage=threshold.coverage,
    )
    if isinstance(threshold, CoverageThreshold):
        return report.model_copy(update={"target_coverage": threshold.target_coverage})
    return report.model_copy(
        update={
            "target_error": threshold.target_error,
            "delta": threshold.delta,
            "error_upper_bound": threshold.error_upper_bound,
        }
    )


def calibration_object(view: CalibrationView) -> schemas.Calibration:
    """Render a calibration."""
    return schemas.Calibration(
        id=view.id,
        adapter_id=view.adapter_id,
        version=view.version,
        state="revoked" if view.revoked else "incomplete" if view.held else "active",
        revoked_reason=view.revoked,
        n=view.n,
        feedback=view.feedback,
        accuracy=view.accuracy,
        **asdict(view.conditions),
        certificates=[_certificate(target, found) for target, found in view.certificates.items()],
        sets=[
            schemas.SetReport(alpha=q.alpha, valid_for_alpha=q.attainable, coverage=q.coverage, n=q.n)
            for q in view.quantiles
        ],
        monitoring=schemas.MonitoringReport(**asdict(view.counts)),
        warnings=list(view.warnings),
        question=_calibrated_question(view.question) if view.question is not None else None,
    )


def calibrations_object(
    adapter_id: str, views: Sequence[CalibrationView]
) -> schemas.Calibration | schemas.QuestionCalibrations:
    """Render the calibrations of an adapter: the one of an adapter without instructions by itself."""
    shown = list(map(calibration_object, views))
    if len(shown) == 1 and shown[0].question is None:
        return shown[0]
    return schemas.QuestionCalibrations(adapter_id=adapter_id, questions=shown)


def _calibrated_question(asked: AdapterQuestion) -> schemas.CalibratedQuestion:
    question = asked.question
    return schemas.CalibratedQuestion(
        index=asked.index, name=question.name or None, instruction=question.instruction
    )


def feedback_response(outcome: FeedbackOutcome) -> schemas.FeedbackResponse:
    """Render what became of labels."""
    shown = list(map(calibration_object, outcome.views))
    return schemas.FeedbackResponse(
        stored=outcome.stored,
        asked=outcome.asked,
        known=outcome.known,
        contradicted=list(outcome.contradicted),
        calibration=shown[0],
        calibrations=shown if len(shown) > 1 else None,
    )


def _certificate(target_error: float, found: Certificate | NotYet) -> schemas.CertificateReport:
    if isinstance(found, NotYet):
        return schemas.CertificateReport(
            target_error=target_error,
            delta=USUAL_DELTA,
            certified=False,
            about_n_more_labels=found.about_n_more_labels,
        )
    return schemas.CertificateReport(certified=True, coverage=found.coverage, **asdict(found))
