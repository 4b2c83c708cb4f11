"""Builds the engine's request records from the native wire."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.tasks import Example, Query
from service import schemas
from service.engine.requests import AdaptOverrides, AdaptRequest, PredictRequest
from service.gating.records import USUAL_DELTA, CalibrateRequest, GateRequest, LabelledCase, LabelledText


def adapt_request(body: schemas.CreateAdapterRequest | schemas.PredictRequest) -> AdaptRequest:
    """Return the adaptation that the body asks for."""
    return AdaptRequest(
        examples(body.support or [], body.options),
        seed=body.seed,
        truncate=body.truncate,
        model=body.model,
        **adapt_fields(body.adapt),
    )


def adapt_fields(adapt: schemas.Adapt | None) -> dict[str, Any]:
    """Return the fields of an `AdaptRequest` that `adapt` sets."""
    given = (adapt or schemas.Adapt()).model_dump()
    return {
        "calibration_folds": given.pop("calibration_folds"),
        "refine": bool(given.pop("refine")),
        "overrides": AdaptOverrides(**given),
    }


def predict_request(body: schemas.PredictRequest) -> PredictRequest:
    """Return the prediction that the body asks for."""
    rows = [schemas.InputRow(input=row) if isinstance(row, str) else row for row in body.inputs]
    return PredictRequest(
        adapter=body.adapter_id if body.support is None else adapt_request(body),
        queries=tuple(Query(row.input, _options(row.options, body.options)) for row in rows),
        settings=predict_settings(body),
        gate=gate_request(body.gate, body.set, log=body.log),
        confidence=body.confidence,
        truncate=body.truncate,
        model=body.model,
    )


def calibrate_request(adapter_id: str, body: schemas.CalibrateRequest) -> CalibrateRequest:
    """Return the calibration of the adapter that the body asks for."""
    return CalibrateRequest(
        adapter_id=adapter_id,
        examples=tuple(
            LabelledText(row.input, row.output, _options(row.options, body.options))
            for row in body.examples or ()
        ),
        settings=predict_settings(body),
        truncate=body.truncate,
        replace=body.replace,
        more_follow=body.more_follow,
        question=body.question,
        cases=tuple(LabelledCase(row.input, row.answers) for row in body.cases or ()),
    )


def predict_settings(body: schemas.PredictRequest | schemas.CalibrateRequest) -> PredictSettings:
    """Return the fields of `body` that `PredictSettings` has too."""
    names = {field.name for field in fields(PredictSettings)} & set(type(body).model_fields)
    return PredictSettings(**{name: getattr(body, name) for name in names})


def gate_request(
    gate: schemas.Gate | None, set_request: schemas.SetRequest | None = None, *, log: bool = False
) -> GateRequest:
    """Return the gate that a body asks for, with its prediction sets, and whether answers are
    logged.
    """
    gate = gate or schemas.Gate()
    return GateRequest(
        thresholds=Thresholds(**{field.name: getattr(gate, field.name) for field in fields(Thresholds)}),
        target_error=gate.target_error,
        delta=USUAL_DELTA if gate.delta is None else gate.delta,
        target_coverage=gate.target_coverage,
        alpha=set_request.alpha if set_request else None,
        log=log,
    )


def examples(rows: list[schemas.SupportRow], shared: list[str] | None) -> tuple[Example, ...]:
    """Return the rows as examples; rows without their own options have the `shared` ones."""
    return tuple(Example(row.input, row.output, _options(row.options, shared)) for row in rows)


def _options(own: list[str] | None, shared: list[str] | None) -> tuple[str, ...]:
    return tuple(own or shared or ())
