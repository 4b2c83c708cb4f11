"""What every surface that answers inputs does once its request is one of our own: predict, then translate and count."""

from __future__ import annotations

from fastapi import Request

from service import schemas
from service.api.http import engine_of, request_id, tenant_of, unless_disconnected
from service.api.translate import predict_request, predict_response, thresholds
from service.engine.engine import Predicted
from service.metrics import Metrics


async def predict(body: schemas.PredictRequest, request: Request) -> Predicted:
    """The engine's predictions for `body`, given up when the client goes away. Raises `ServiceError`."""
    work = engine_of(request).predict(predict_request(body), tenant=tenant_of(request))
    return await unless_disconnected(request, work)


def answer_of(
    predicted: Predicted, body: schemas.PredictRequest, request: Request
) -> schemas.PredictResponse:
    """The answer to `body`, its decisions counted in the metrics. Many inputs take long: call it off the event loop."""
    answer = predict_response(predicted, thresholds(body.gate), body.seed, request_id(request))
    metrics: Metrics = request.app.state.metrics
    metrics.record_predictions(answer.predictions)
    return answer
