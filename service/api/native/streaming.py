"""`stream: true`: a prediction as server-sent events, from the moment it is admitted. docs/streaming.md lists them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from abmll.errors import AbmllError
from service import schemas
from service.api.error_answers import shape_of
from service.api.http import engine_of, request_id, tenant_of, unless_disconnected
from service.api.native.gates import ask_of, gates_of
from service.api.native.predicting import Done, answer_of, deciding
from service.api.native.rendering import predict_request, prediction_object
from service.engine.engine import Obtained
from service.engine.progress import Known
from service.engine.requests import CacheOutcome
from service.errors import DrainingError, ServiceError, from_exception
from service.gating.records import Opened

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction
    from service.gating.confidence import Judge

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
"""Proxies close connections on which nothing is sent for long."""
SEND_SECONDS = 30.0
"""How long after its deadline a stream may still be read: a client that has stopped reading must not keep its place."""

DOCUMENTED: dict[str, Any] = {
    "description": "The predictions; with `stream: true`, server-sent events that refine them.",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": 'event: adapter\ndata: {"adapter_id":"adp_0","cache":"hit","warnings":[]}\n\n',
        }
    },
}


async def stream_predict(body: schemas.PredictRequest, request: Request) -> EventSourceResponse:
    """The stream of a prediction that is admitted. Raises what refuses it: `ServiceError`."""
    events = _events(body, request)
    await unless_disconnected(request, _admitted(events))
    seconds = request.app.state.settings.deadline_seconds + SEND_SECONDS
    return _Stream(events, seconds, lambda error: _error(error, request))


class _Stream(EventSourceResponse):
    """Closes `events` however it ends: told to the end, left by the client, out of time, or cut off with the server."""

    def __init__(
        self, events: AsyncGenerator[bytes], seconds: float, refuse: Callable[[ServiceError], bytes]
    ) -> None:
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events, self._seconds, self._refuse = events, seconds, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            async with aclosing(self._events), asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # the server has drained for as long as it may
            last = self._refuse(DrainingError("the server is shutting down"))
            await send({"type": "http.response.body", "body": last, "more_body": False})


async def _admitted(events: AsyncGenerator[bytes]) -> None:
    await anext(events)


async def _events(body: schemas.PredictRequest, request: Request) -> AsyncGenerator[bytes]:
    """An empty one once the request is admitted, or what refuses it raised; then the events."""
    engine, keeper, native = engine_of(request), gates_of(request), predict_request(body)
    with engine.watching() as watch:
        ask = ask_of(body)
        opened = await keeper.open(ask, native) if ask is not None else None
        work = asyncio.create_task(engine.predict(native, tenant=tenant_of(request), watch=watch))
        work.add_done_callback(lambda _: watch.wake())
        try:
            while not watch.known.admitted:
                await watch.changed()
                if work.done():
                    await work
            yield b""
            try:
                narrator = _Narrator(body, opened)
                while not work.done():
                    changed = await watch.changed(KEEP_ALIVE_SECONDS)
                    news = await asyncio.to_thread(narrator.news, watch.known)
                    if news or not changed:
                        yield news or format_sse_event(comment="keep-alive")
                predicted = await work
                noted = await keeper.close(opened, native, predicted) if opened else ()
                yield await asyncio.to_thread(narrator.end, Done(predicted, opened, noted), request)
            except Exception as error:
                yield _error(error, request)
        finally:
            work.cancel()


class _Narrator:
    """Turns what is known into events, each told once. May be called in any thread, one call at a time."""

    def __init__(self, body: schemas.PredictRequest, opened: Opened | None) -> None:
        self._body, self._gate = body, deciding(body, opened)
        self._steps = 0
        self._obtained = False
        self._told: dict[int, Prediction] = {}

    def news(self, known: Known) -> bytes:
        """What has not been told yet."""
        events = [*self._adapting(known.losses, known.steps)]
        if known.obtained is not None and not self._obtained:
            events += self._adapter(known.obtained)
        if known.judge is not None:
            events += self._refined(known.partial, partial(self._show, known.judge))
        return b"".join(events)

    def end(self, done: Done, request: Request) -> bytes:
        """What is left to tell of a request that is done; counts its decisions."""
        answer = answer_of(done, self._body, request)
        if done.opened:  # every prediction is told with its id and set, which come last
            self._told.clear()
        events = [] if self._obtained else [*self._adapter(done.predicted)]
        events += self._refined(done.predicted.predictions, lambda index, _: answer.predictions[index])
        return b"".join([*events, _event("done", answer, leave_out="predictions")])

    def _adapting(self, losses: Sequence[float], steps: int) -> Iterator[bytes]:
        for step in range(self._steps, len(losses)):
            yield _event("step", schemas.AdaptStep(step=step + 1, steps=steps, loss=losses[step]))
            self._steps = step + 1

    def _adapter(self, obtained: Obtained) -> Iterator[bytes]:
        self._obtained = True
        manifest = obtained.adapter.manifest
        if obtained.cache is CacheOutcome.MISS:  # with the last step it was there
            yield from self._adapting(manifest.losses, len(manifest.losses))
        found = schemas.AdapterFound(
            adapter_id=manifest.id, cache=obtained.cache.value, warnings=list(manifest.warnings)
        )
        yield _event("adapter", found)

    def _refined(
        self,
        predictions: Sequence[Prediction | None],
        show: Callable[[int, Prediction], schemas.Prediction],
    ) -> Iterator[bytes]:
        for index, prediction in enumerate(predictions):
            told = self._told.get(index)
            # What is done anew is on the way to where it was.
            overtaken = (
                told is not None and told.settled and prediction is not None and not prediction.settled
            )
            if prediction is None or prediction == told or overtaken:
                continue
            self._told[index] = prediction
            yield _event("prediction" if prediction.settled else "refinement", show(index, prediction))

    def _show(self, judge: Judge, index: int, prediction: Prediction) -> schemas.Prediction:
        return prediction_object(index, prediction, judge.confidence(index, prediction), self._gate)


def _event(name: str, data: schemas.WireModel, leave_out: str = "") -> bytes:
    text = data.model_dump_json(exclude_none=True, exclude={leave_out})
    return format_sse_event(event=name, data_str=text)


def _error(error: Exception, request: Request) -> bytes:
    if not isinstance(error, ServiceError | AbmllError):
        log.error("request %s failed", request_id(request), exc_info=error)
    body = shape_of(request)(from_exception(error), request_id(request))
    return format_sse_event(event="error", data_str=to_json(body).decode())
