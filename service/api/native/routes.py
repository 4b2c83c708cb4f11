"""The routes of the native surface: adapters and predictions."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service import schemas
from service.api import decision_answers
from service.api.error_answers import documented_errors
from service.api.http import engine_of, request_id, unless_disconnected
from service.api.json_bodies import JsonRoute
from service.api.native import asking, predicting, progress, streaming
from service.api.native.rendering import adapter_object, create_response
from service.api.native.typed_answers import decide_response
from service.engine.long_adaptations import LongAdaptation

_WORK_ERRORS = documented_errors(400, 404, 413, 415, 422, 429, 500, 503, 504, 507)
router = APIRouter(prefix="/v1", route_class=JsonRoute, tags=["adapt and predict"])


@router.post(
    "/adapters",
    status_code=201,
    response_model=schemas.CreateAdapterResponse,
    responses={
        200: {"model": schemas.CreateAdapterResponse, "description": "It was there already."},
        202: {"model": schemas.AdapterProgress, "description": "It is not there after `wait_ms`."},
        **documented_errors(409),
        **_WORK_ERRORS,
    },
)
async def create_adapter(
    body: schemas.CreateAdapterRequest, request: Request, wait_ms: progress.WaitMs = None
) -> Response:
    """Adapt to a support, or to cases of questions. Equal bodies give the same id, and are adapted
    to once.

    The status is 201 when this request made the adapter, 200 when it was there or was being made.
    Either way the adapter is on disk. With `wait_ms`, the adaptation goes on without its client:
    where the adapter is not there in time, the status is 202, and `Location` has the way to its
    progress.
    """
    engine = engine_of(request)
    with asking.placed(body):
        asked = asking.adaptation(body)
        if wait_ms is None:
            obtained = await unless_disconnected(request, engine.create_adapter(asked))
        else:
            begun = await unless_disconnected(request, engine.begin_adapter(asked, wait_ms / 1000))
            if isinstance(begun, LongAdaptation):
                return _accepted(begun, request)
            obtained = begun
    answer = create_response(obtained, request_id(request))
    return _json(answer, 201 if answer.cache == "miss" else 200)


@router.get("/adapters", response_model_exclude_none=True, responses=documented_errors(422, 500))
async def list_adapters(
    request: Request,
    after: Annotated[str | None, Query(description="Id after which the page begins.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most adapters of the page.")] = 100,
) -> schemas.AdapterList:
    """List the adapters of this server, ordered by id."""
    manifests, has_more = await engine_of(request).adapters(after, limit)
    return schemas.AdapterList(data=list(map(adapter_object, manifests)), has_more=has_more)


@router.get(
    "/adapters/{adapter_id}", response_model=schemas.Adapter, responses=documented_errors(404, 422, 500)
)
async def get_adapter(adapter_id: str, request: Request) -> Response:
    """Show one adapter."""
    adapter = await engine_of(request).adapter(adapter_id)
    return _json(adapter_object(adapter.manifest, adapter.diagnosis), 200)


@router.delete("/adapters/{adapter_id}", responses=documented_errors(404, 409, 422, 500, 507))
async def delete_adapter(adapter_id: str, request: Request) -> schemas.DeletedAdapter:
    """Delete an adapter, on disk too, if no name points to it. Requests that are using it finish."""
    await engine_of(request).delete_adapter(adapter_id)
    return schemas.DeletedAdapter(id=adapter_id)


@router.post("/adapters/{adapter_id}/pin", responses=documented_errors(404, 422, 500))
async def pin_adapter(adapter_id: str, request: Request) -> schemas.PinnedAdapter:
    """Hold an adapter in memory until it is unpinned or deleted, or the server restarts."""
    await engine_of(request).pin(adapter_id)
    return schemas.PinnedAdapter(id=adapter_id, pinned=True)


@router.post("/adapters/{adapter_id}/unpin", responses=documented_errors(404, 422, 500))
async def unpin_adapter(adapter_id: str, request: Request) -> schemas.PinnedAdapter:
    """Allow an adapter to be dropped from memory again; it stays on disk."""
    await engine_of(request).unpin(adapter_id)
    return schemas.PinnedAdapter(id=adapter_id, pinned=False)


@router.post(
    "/predict", response_model=schemas.PredictResponse, responses={200: streaming.DOCUMENTED, **_WORK_ERRORS}
)
async def predict(body: schemas.PredictRequest, request: Request) -> Response:
    """Answer inputs with probabilities, their uncertainty and a decision.

    With `support`, adapt first. Abstaining is an answer: the status is 200, `decision` is
    `abstain`, and the probabilities are there as always.
    """
    if body.stream:
        return await streaming.stream_predict(body, request)
    return await predicting.predict_and_render(body, request, lambda answer: _json(answer, 200))


@router.post("/decide", response_model=schemas.DecideResponse, responses=_WORK_ERRORS)
async def decide(body: schemas.DecideRequest, request: Request) -> Response:
    """Answer typed questions about each input.

    The base model answers without cases (zero-shot), an adapter by what it has learned. With
    `cases`, one is made first. Abstaining is an answer, as in `POST /v1/predict`.
    """
    asked = await asking.decision_body(body, engine_of(request))
    decided = await decision_answers.decide(asked, request)
    # In a thread, since many inputs times many questions make megabytes of JSON.
    answer = await asyncio.to_thread(decide_response, decided, asked, request_id(request))
    return Response(answer.model_dump_json(), media_type="application/json")


def _accepted(begun: LongAdaptation, request: Request) -> Response:
    answer = _json(progress.progress_object(begun), 202)
    root = request.scope.get("root_path", "")
    answer.headers["location"] = f"{root}/v1/adapters/{begun.adapter_id}/progress"
    answer.headers.update(progress.headers_of(begun))
    return answer


def _json(answer: schemas.WireModel, status: int) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), status, media_type="application/json")
