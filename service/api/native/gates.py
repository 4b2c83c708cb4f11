"""Calibrated gates over HTTP: calibrate, look at it, forget it, send feedback; and what predict needs of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from abmll.assurance.certificates import Certificate, CoverageThreshold, NotYet
from abmll.text.tasks import Example
from service import schemas
from service.api.error_answers import documented_errors
from service.api.http import tenant_of, unless_disconnected
from service.api.json_bodies import JsonRoute
from service.errors import LimitExceededError
from service.gating.keeper import GateKeeper
from service.gating.records import USUAL_DELTA, Ask, CalibrateRequest, CalibrationView, Noted, Opened
from service.gating.rules import set_note
from service.settings import Settings

if TYPE_CHECKING:
    from abmll.assurance.conformal import ConformalQuantile

router = APIRouter(prefix="/v1/adapters/{adapter_id}", route_class=JsonRoute, tags=["calibrated gates"])
_WORK_ERRORS = documented_errors(400, 404, 413, 415, 422, 429, 500, 503, 504)


def gates_of(request: Request) -> GateKeeper:
    """The gate keeper of the application that serves this request."""
    keeper: GateKeeper = request.app.state.gates
    return keeper


@router.post("/calibrate", responses=_WORK_ERRORS, response_model_exclude_none=True)
async def calibrate(adapter_id: str, body: schemas.CalibrateRequest, request: Request) -> schemas.Calibration:
    """Predict labelled examples and keep how they came out; a gate with a target can then be asked for.

    Adds to what is there unless `replace` is set. Examples in the adapter's support, and repeated ones, are left out with
    a warning.
    """
    _check_count(request, "examples", len(body.examples))
    examples = tuple(
        Example(row.input, row.output, tuple(row.options or body.options or ())) for row in body.examples
    )
    domain = CalibrateRequest(
        adapter_id=adapter_id,
        examples=examples,
        samples=body.samples,
        seed=body.seed,
        max_new_tokens=body.max_new_tokens,
        truncate=body.truncate,
        replace=body.replace,
        more_follow=body.more_follow,
    )
    work = gates_of(request).calibrate(domain, tenant=tenant_of(request))
    return _calibration(await unless_disconnected(request, work))


@router.get("/calibration", responses=documented_errors(404, 422, 500), response_model_exclude_none=True)
async def get_calibration(adapter_id: str, request: Request) -> schemas.Calibration:
    """The adapter's calibration, with what it certifies for some usual targets."""
    return _calibration(await gates_of(request).view(adapter_id))


@router.delete("/calibration", responses=documented_errors(404, 422, 500))
async def delete_calibration(adapter_id: str, request: Request) -> schemas.DeletedCalibration:
    """Forget the adapter's calibration, its feedback and its alarms, on disk too."""
    await gates_of(request).delete(adapter_id)
    return schemas.DeletedCalibration(adapter_id=adapter_id)


@router.post(
    "/feedback", responses=documented_errors(400, 404, 413, 415, 422, 500), response_model_exclude_none=True
)
async def feedback(
    adapter_id: str, body: schemas.FeedbackRequest, request: Request
) -> schemas.FeedbackResponse:
    """Label predictions that were served. Labels of the random share count for the gate and the drift alarm; all are kept."""
    _check_count(request, "feedback", len(body.feedback))
    labels = [(row.prediction_id, row.label) for row in body.feedback]
    outcome = await gates_of(request).feedback(adapter_id, labels)
    return schemas.FeedbackResponse(
        stored=outcome.stored,
        asked=outcome.asked,
        known=outcome.known,
        calibration=_calibration(outcome.view),
    )


def ask_of(body: schemas.PredictRequest) -> Ask | None:
    """What the request wants of the adapter's calibration; None where it needs none."""
    if not body.calibrated:
        return None
    gate = body.gate or schemas.Gate()
    return Ask(
        target_error=gate.target_error,
        delta=USUAL_DELTA if gate.delta is None else gate.delta,
        target_coverage=gate.target_coverage,
        alpha=body.set.alpha if body.set else None,
    )


def with_gate(
    answer: schemas.PredictResponse, opened: Opened, noted: tuple[Noted, ...]
) -> schemas.PredictResponse:
    """The answer with the calibrated gate's report, prediction ids and prediction sets."""
    predictions = [
        prediction.model_copy(
            update={
                "prediction_id": note.id,
                "explored": note.asked,
                "prediction_set": _set(opened.quantile, note),
            }
        )
        for prediction, note in zip(answer.predictions, noted, strict=True)
    ]
    return answer.model_copy(update={"predictions": predictions, "gate": _gate(opened)})


def _gate(opened: Opened) -> schemas.GateReport | None:
    gate = opened.gate
    if gate is None:
        return None
    report = schemas.GateReport(
        calibration_id=opened.calibration_id,
        version=opened.version,
        threshold=gate.threshold,
        n=gate.n,
        coverage=gate.coverage,
    )
    if isinstance(gate, CoverageThreshold):
        return report.model_copy(update={"target_coverage": gate.target_coverage})
    return report.model_copy(
        update={
            "target_error": gate.target_error,
            "delta": gate.delta,
            "error_upper_bound": gate.error_upper_bound,
        }
    )


def _set(quantile: ConformalQuantile | None, note: Noted) -> schemas.PredictionSet | None:
    if quantile is None or note.options_in_set is None:
        return None
    return schemas.PredictionSet(
        options=list(note.options_in_set),
        alpha=quantile.alpha,
        valid_for_alpha=quantile.attainable,
        coverage=quantile.coverage,
        n=quantile.n,
        note=set_note(quantile),
    )


def _calibration(view: CalibrationView) -> schemas.Calibration:
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


def _check_count(request: Request, what: str, count: int) -> None:
    settings: Settings = request.app.state.settings
    if count > settings.max_inputs:
        raise LimitExceededError(f"{count} {what}; the limit is {settings.max_inputs}", what)
