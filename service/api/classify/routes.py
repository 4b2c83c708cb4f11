"""The route `POST /v1/classify`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.classify import wire
from service.api.classify.rendering import classify_response
from service.api.classify.requests import field_name, predict_request
from service.api.http import engine_of
from service.api.json_bodies import JsonRoute
from service.api.native.predicting import predict_and_render, renamed_fields
from service.errors import InvalidRequestError

router = APIRouter(prefix="/v1", route_class=JsonRoute, tags=["Cohere Classify"])


@router.post(
    "/classify",
    response_model=wire.ClassifyResponse,
    responses={"4XX": {"model": wire.ClassifyError}, "5XX": {"model": wire.ClassifyError}},
)
async def classify(body: wire.ClassifyRequest, request: Request) -> Response:
    """Label texts by examples, as Cohere's Classify does.

    The examples are the support, and their labels in order of first appearance are the options.
    Equal examples are adapted to once.
    """
    with renamed_fields(field_name):
        native = predict_request(body)
        if native.support is None and native.model is not None:
            called = await _check_labels(native.model, request)
            native = native.model_copy(update={"model": called})
        return await predict_and_render(
            native,
            request,
            lambda answer: Response(
                classify_response(answer, body.inputs).model_dump_json(exclude_none=True),
                media_type="application/json",
            ),
        )


async def _check_labels(model: str, request: Request) -> str:
    """Return what the model is called for good, a version of a name or an id.

    Raises `InvalidRequestError` if it is an adapter whose examples have no options in common.
    """
    engine = engine_of(request)
    adapter_id, called = await engine.resolve_model(model)
    if adapter_id is not None and not (await engine.adapter(adapter_id)).manifest.support.options:
        message = f"the examples of adapter {adapter_id} share no labels: ask it with POST /v1/predict"
        raise InvalidRequestError(message, "model")
    return called
