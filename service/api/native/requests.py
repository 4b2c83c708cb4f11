"""Builds the engine's request records from the native wire."""

from __future__ import annotations

from dataclasses import fields

from abmll.prediction.settings import PredictSettings, Thresholds
from abmll.text.tasks import Example, Query
from service import schemas
from service.engine.requests import AdaptOverrides, AdaptRequest, PredictRequest
from service.gating.records import USUAL_DELTA, CalibrateRequest, GateRequest


def adapt_request(body: schemas.CreateAdapterRequest | schemas.PredictRequest) -> AdaptRequest:
    """Return the adaptation that the body asks for."""
    given = body.adapt.model_dump() if body.adapt else {}
    folds = given.pop("calibration_folds", None)
    support = examples(body.support or [], body.options)
    return AdaptRequest(support, AdaptOverrides(**given), body.seed, body.truncate, body.model, folds)


def predict_request(body: schemas.PredictRequest) -> PredictRequest:
    """Return the prediction that the body asks for."""
    rows = [schemas.InputRow(input=row) if isinstance(row, str) else row for row in body.inputs]
    return PredictRequest(
        adapter=body.adapter_id if body.support is None else adapt_request(body),
        queries=tuple(Query(row.input, _options(row.options, body.options)) for row in rows),
        settings=predict_settings(body),
        gate=gate_request(body),
        confidence=body.confidence,
        truncate=body.truncate,
        model=body.model,
    )


def calibrate_request(adapter_id: str, body: schemas.CalibrateRequest) -> CalibrateRequest:
    """Return the calibration of the adapter that the body asks for."""
    return CalibrateRequest(
        adapter_id=adapter_id,
        examples=examples(body.examples, body.options),
        settings=predict_settings(body),
        truncate=body.truncate,
        replace=body.replace,
        more_follow=body.more_follow,
    )


def predict_settings(body: schemas.PredictRequest | schemas.CalibrateRequest) -> PredictSettings:
    """Return the fields of `body` that `PredictSettings` has too."""
    names = {field.name for field in fields(PredictSettings)} & set(type(body).model_fields)
    return PredictSettings(**{name: getattr(body, name) for name in names})


def gate_request(body: schemas.PredictRequest) -> GateRequest:
    """Return the gate that the body asks for."""
    gate = body.gate or schemas.Gate()
    return GateRequest(
        thresholds=Thresholds(**{field.name: getattr(gate, field.name) for field in fields(Thresholds)}),
        target_error=gate.target_error,
        delta=USUAL_DELTA if gate.delta is None else gate.delta,
        target_coverage=gate.target_coverage,
        alpha=body.set.alpha if body.set else None,
        log=body.log,
    )


def examples(rows: list[schemas.SupportRow], shared: list[str] | None) -> tuple[Example, ...]:
    """Return the rows as examples; rows without their own options have the `shared` ones."""
    return tuple(Example(row.input, row.output, _options(row.options, shared)) for row in rows)


def _options(own: list[str] | None, shared: list[str] | None) -> tuple[str, ...]:
    return tuple(own or shared or ())
