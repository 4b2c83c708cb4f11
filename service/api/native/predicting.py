"""Predicting, for every surface: a native request in, the native answer out, counted on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from service import schemas
from service.api.http import engine_of, request_id, tenant_of, unless_disconnected
from service.api.native.gates import ask_of, gates_of, with_gate
from service.api.native.rendering import predict_request, predict_response, thresholds
from service.engine.engine import Predicted
from service.errors import ServiceError, from_validation
from service.gating.records import Noted, Opened
from service.gating.thresholds import Thresholds
from service.metrics import Metrics

T = TypeVar("T")


@dataclass(frozen=True)
class Done:
    """Predictions, and what the adapter's calibration adds to them where the request needs it."""

    predicted: Predicted
    opened: Opened | None
    noted: tuple[Noted, ...]


async def predict(body: schemas.PredictRequest, request: Request) -> Done:
    """The engine's predictions for `body`, given up when the client goes away. Raises `ServiceError`."""
    keeper, native = gates_of(request), predict_request(body)
    ask = ask_of(body)
    opened = await keeper.open(ask, native) if ask is not None else None
    predicted = await unless_disconnected(
        request, engine_of(request).predict(native, tenant=tenant_of(request))
    )
    noted = await keeper.close(opened, native, predicted) if opened else ()
    return Done(predicted, opened, noted)


def deciding(body: schemas.PredictRequest, opened: Opened | None) -> Thresholds:
    """The thresholds that `body` is decided with: the calibration's, or its own."""
    return opened.thresholds if opened and opened.gate else thresholds(body.gate)


def answer_of(done: Done, body: schemas.PredictRequest, request: Request) -> schemas.PredictResponse:
    """The answer to `body`, its decisions counted in the metrics. Many inputs take long: call it off the event loop."""
    gate = deciding(body, done.opened)
    answer = predict_response(done.predicted, gate, body.seed, request_id(request))
    if done.opened:
        answer = with_gate(answer, done.opened, done.noted)
    metrics: Metrics = request.app.state.metrics
    metrics.record_predictions(answer.predictions)
    return answer


async def predict_and_render(
    body: schemas.PredictRequest, request: Request, render: Callable[[schemas.PredictResponse], T]
) -> T:
    """What `render` makes of the answer to `body`. Raises as `predict`."""
    done = await predict(body, request)
    # Many inputs times many options make megabytes of JSON: not on the event loop.
    return await asyncio.to_thread(lambda: render(answer_of(done, body, request)))


def native_request(fields: Mapping[str, Any]) -> schemas.PredictRequest:
    """The native request of these fields. Raises `InvalidRequestError`."""
    try:
        return schemas.PredictRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors()) from error


@contextmanager
def renamed_fields(name: Callable[[str], str]) -> Iterator[None]:
    """Errors from inside name the field at fault as `name` translates it from the native request."""
    try:
        yield
    except ServiceError as error:
        if error.param is None:
            raise
        raise error.at(name(error.param)) from error
