"""`stream: true`: a prediction as server-sent events, from the moment it is admitted. docs/streaming.md lists them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from abmll.errors import AbmllError
from service import schemas
from service.api.error_answers import shape_of
from service.api.http import engine_of, request_id, tenant_of, unless_disconnected
from service.api.native.predicting import answer_of
from service.api.native.rendering import prediction_object
from service.api.native.requests import predict_request
from service.api.server_sent_events import data_event
from service.engine.answers import Answered, Obtained
from service.engine.progress import Progress
from service.engine.requests import CacheOutcome
from service.errors import DrainingError, ServiceError, from_exception

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction
    from service.gating.decisions import DecidedPrediction

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
    engine = engine_of(request)
    with engine.following() as feed:
        work = asyncio.create_task(
            engine.predict(predict_request(body), tenant=tenant_of(request), feed=feed)
        )
        work.add_done_callback(lambda _: feed.wake())
        try:
            while not feed.latest.admitted:
                await feed.changed()
                if work.done():
                    await work
            yield b""
            try:
                narrator = _Narrator()
                while not work.done():
                    changed = await feed.changed(KEEP_ALIVE_SECONDS)
                    news = await asyncio.to_thread(narrator.news, feed.latest)
                    if news or not changed:
                        yield news or format_sse_event(comment="keep-alive")
                answered = await work
                answer = await asyncio.to_thread(answer_of, answered, body, request)
                yield await asyncio.to_thread(narrator.end, answered, answer)
            except Exception as error:
                yield _error(error, request)
        finally:
            work.cancel()


class _Narrator:
    """Turns progress into events, each sent once. May be called in any thread, one call at a time."""

    def __init__(self) -> None:
        self._steps = 0
        self._obtained = False
        self._sent: dict[int, Prediction] = {}

    def news(self, progress: Progress) -> bytes:
        """What has not been sent yet."""
        events = [*self._adapting(progress.losses, progress.steps)]
        if progress.obtained is not None and not self._obtained:
            events += self._adapter(progress.obtained)
        events += self._refined(progress.predictions, prediction_object)
        return b"".join(events)

    def end(self, answered: Answered, answer: schemas.PredictResponse) -> bytes:
        """What is left to send of a request that is done and its `answer`."""
        if answered.grant:  # every prediction is sent with its id and set, which come last
            self._sent.clear()
        events = [] if self._obtained else [*self._adapter(answered)]
        events += self._refined(answered.predictions, lambda index, _: answer.predictions[index])
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
        predictions: Sequence[DecidedPrediction | None],
        show: Callable[[int, DecidedPrediction], schemas.Prediction],
    ) -> Iterator[bytes]:
        for index, decided in enumerate(predictions):
            prediction, sent = None if decided is None else decided.prediction, self._sent.get(index)
            # What is done anew is on the way to where it was.
            overtaken = (
                sent is not None and sent.settled and prediction is not None and not prediction.settled
            )
            if decided is None or prediction is None or prediction == sent or overtaken:
                continue
            self._sent[index] = prediction
            yield _event("prediction" if prediction.settled else "refinement", show(index, decided))


def _event(name: str, data: schemas.WireModel, leave_out: str = "") -> bytes:
    text = data.model_dump_json(exclude_none=True, exclude={leave_out})
    return data_event(text, name)


def _error(error: Exception, request: Request) -> bytes:
    if not isinstance(error, ServiceError | AbmllError):
        log.error("request %s failed", request_id(request), exc_info=error)
    body = shape_of(request)(from_exception(error), request_id(request))
    return data_event(to_json(body).decode(), "error")
