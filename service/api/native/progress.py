"""The routes of adaptations that go on without their client: how far they are, and their end."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import format_sse_event

from service import schemas
from service.api.error_answers import documented_errors
from service.api.http import check_key, engine_of, settings_of, unless_disconnected
from service.api.native.streaming import (
    KEEP_ALIVE_SECONDS,
    SEND_SECONDS,
    EventStream,
    error_event,
    event_of,
)
from service.api.server_sent_events import EVENT_SCHEMA
from service.engine.long_adaptations import LongAdaptation

router = APIRouter(prefix="/v1", tags=["adapt and predict"])

LONGEST_WAIT_MS = 300_000
WaitMs: TypeAlias = Annotated[
    int | None,
    Query(
        ge=0,
        le=LONGEST_WAIT_MS,
        description="Longest wait for the answer, in milliseconds; less than the time-out of a proxy between.",
    ),
]
_EVENTS: dict[str, Any] = {
    "description": "Server-sent events `progress`, and one `done`, each with an `AdapterProgress`.",
    "content": {"text/event-stream": {"schema": EVENT_SCHEMA}},
}


@router.get("/adapters/{adapter_id}/progress", responses=documented_errors(404, 422, 500))
async def get_progress(
    adapter_id: str, request: Request, response: Response, wait_ms: WaitMs = None
) -> schemas.AdapterProgress:
    """Show how far the making of an adapter is, once its status is final or after `wait_ms`."""
    work = engine_of(request).long_adaptations.progress(adapter_id, (wait_ms or 0) / 1000)
    found = await unless_disconnected(request, work)
    response.headers.update(headers_of(found))
    return progress_object(found)


@router.get(
    "/adapters/{adapter_id}/events",
    response_class=Response,
    responses={200: _EVENTS, **documented_errors(404, 422, 500)},
)
async def stream_progress(adapter_id: str, request: Request) -> Response:
    """Show each change of the making of an adapter, to its end, as server-sent events."""
    seconds = settings_of(request).long_deadline_seconds
    events = _events(adapter_id, request, time.monotonic() + seconds)
    await anext(events)  # raises where the adapter is unknown
    return EventStream(events, seconds + SEND_SECONDS, lambda error: error_event(error, request))


@router.post("/adapters/{adapter_id}/cancel", responses=documented_errors(404, 422, 500))
async def cancel_adaptation(adapter_id: str, request: Request) -> schemas.AdapterProgress:
    """End an adaptation that was asked for with `wait_ms`. What has ended stays as it is.

    It goes on where other requests wait for the same adapter.
    """
    return progress_object(await engine_of(request).long_adaptations.cancel(adapter_id))


async def _events(adapter_id: str, request: Request, until: float) -> AsyncGenerator[bytes]:
    """Yield empty bytes where the adapter is known, then the events of its making."""
    owner = engine_of(request).long_adaptations
    await owner.progress(adapter_id)
    yield b""
    try:
        last = None
        while last is None or not (last.status.ended or time.monotonic() >= until):
            silent = True
            async for now in owner.follow(adapter_id, min(until, time.monotonic() + KEEP_ALIVE_SECONDS)):
                if last is not None and (now.status, now.losses) == (last.status, last.losses):
                    continue
                last, silent = now, False
                check_key(request)
                yield event_of("done" if now.status.ended else "progress", progress_object(now))
            if silent:
                check_key(request)
                yield format_sse_event(comment="keep-alive")
    except Exception as error:
        yield error_event(error, request)


def headers_of(progress: LongAdaptation) -> dict[str, str]:
    """Return after how long to ask again, where the status is not final."""
    seconds = progress.retry_after_seconds
    return {} if seconds is None else {"retry-after": str(seconds)}


def progress_object(progress: LongAdaptation) -> schemas.AdapterProgress:
    """Render how far an adaptation is. A loss that is no finite number is left out."""
    error, losses = progress.error, progress.losses
    return schemas.AdapterProgress(
        id=progress.adapter_id,
        status=progress.status.value,
        step=len(losses),
        steps=progress.steps,
        loss=losses[-1] if losses and math.isfinite(losses[-1]) else None,
        created=progress.created,
        finished=progress.finished,
        error=None
        if error is None
        else schemas.AdaptationError(code=error.code, message=error.message, param=error.param),
    )
