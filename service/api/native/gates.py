"""The routes of calibrated gates: calibrate, show, delete, send feedback."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service import schemas
from service.api.error_answers import documented_errors
from service.api.http import engine_of, unless_disconnected
from service.api.json_bodies import JsonRoute
from service.api.native.gate_rendering import calibration_object, calibrations_object, feedback_response
from service.api.native.requests import calibrate_request
from service.errors import LimitExceededError, over_limit
from service.settings import Settings

router = APIRouter(prefix="/v1/adapters/{adapter_id}", route_class=JsonRoute, tags=["calibrated gates"])
_WORK_ERRORS = documented_errors(400, 404, 413, 415, 422, 429, 500, 503, 504, 507)


@router.post("/calibrate", responses=_WORK_ERRORS, response_model_exclude_none=True)
async def calibrate(adapter_id: str, body: schemas.CalibrateRequest, request: Request) -> schemas.Calibration:
    """Predict labelled examples, and store which answers were right; then gates can have a target.

    Examples are added to the calibration unless `replace` is set. Examples in the adapter's
    support, and repeated ones, are left out with a warning. A question of an adapter has a
    calibration of its own.
    """
    _check_count(request, "examples", len(body.examples or ()))
    _check_count(request, "cases", len(body.cases or ()))
    work = engine_of(request).calibrations.add(calibrate_request(adapter_id, body))
    return calibration_object(await unless_disconnected(request, work))


_Question = Annotated[str | None, Query(description="One question of the adapter, by its name or its index.")]


@router.get("/calibration", responses=documented_errors(404, 422, 500), response_model_exclude_none=True)
async def get_calibration(
    adapter_id: str, request: Request, question: _Question = None
) -> schemas.Calibration | schemas.QuestionCalibrations:
    """Show the adapter's calibration, with what it certifies for some usual targets.

    An adapter of cases has one for each of its questions: `question` names one of them.
    """
    views = await engine_of(request).calibrations.views(adapter_id, question)
    return calibration_object(views[0]) if question is not None else calibrations_object(adapter_id, views)


@router.delete("/calibration", responses=documented_errors(404, 422, 500, 507))
async def delete_calibration(
    adapter_id: str, request: Request, question: _Question = None
) -> schemas.DeletedCalibration:
    """Delete the adapter's calibration, its feedback and its alarms, on disk too.

    Of an adapter of cases that is those of all its questions, or of the one that `question` names.
    """
    await engine_of(request).calibrations.delete(adapter_id, question)
    return schemas.DeletedCalibration(adapter_id=adapter_id)


@router.post(
    "/feedback",
    responses=documented_errors(400, 404, 413, 415, 422, 500, 507),
    response_model_exclude_none=True,
)
async def feedback(
    adapter_id: str, body: schemas.FeedbackRequest, request: Request
) -> schemas.FeedbackResponse:
    """Label predictions that were served.

    All labels are stored. Only labels of predictions that were drawn at random (`explored`) count
    for the gate and its alarms.
    """
    _check_count(request, "feedback", len(body.feedback))
    labels = [(row.prediction_id, row.label) for row in body.feedback]
    outcome = await engine_of(request).calibrations.label(adapter_id, labels)
    return feedback_response(outcome)


def _check_count(request: Request, what: str, count: int) -> None:
    settings: Settings = request.app.state.settings
    if count > settings.max_inputs:
        raise LimitExceededError(over_limit(f"{count} {what}", settings.max_inputs, "max_inputs"), what)
