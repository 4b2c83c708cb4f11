"""Streamed predictions: server-sent events, once the request is admitted (docs/streaming.md)."""

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
from service.api.error_answers import form_of
from service.api.http import check_key, engine_of, request_id, unless_disconnected
from service.api.native.predicting import answer_of
from service.api.native.rendering import prediction_object
from service.api.native.requests import predict_request
from service.api.server_sent_events import EVENT_SCHEMA, data_event
from service.engine.answers import Answered, Obtained
from service.engine.progress import Progress
from service.engine.requests import CacheOutcome
from service.errors import DrainingError, ServiceError, from_exception

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction
    from service.gating.decisions import DecidedPrediction

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
"""Longest time without an event. Proxies close connections on which nothing is sent for long."""
SEND_SECONDS = 30.0
"""How long after the request's deadline a stream may still be read.

A client that has stopped reading must not count as in flight for ever.
"""

DOCUMENTED: dict[str, Any] = {
    "description": "The predictions; with `stream: true`, server-sent events that refine them.",
    "content": {
        "text/event-stream": {
            "schema": EVENT_SCHEMA,
            "example": {"event": "adapter", "data": '{"adapter_id":"adp_0","cache":"hit","warnings":[]}'},
        }
    },
}


async def stream_predict(body: schemas.PredictRequest, request: Request) -> EventSourceResponse:
    """Return the stream of a prediction once the request is admitted. Raises `ServiceError`."""
    events = _events(body, request)
    await unless_disconnected(request, _admitted(events))
    seconds = request.app.state.settings.deadline_seconds + SEND_SECONDS
    return EventStream(events, seconds, lambda error: error_event(error, request))


class EventStream(EventSourceResponse):
    """Response that sends `events` and always closes them.

    That is also so where the client leaves, where `seconds` have passed, and where the server is
    shut down.
    """

    def __init__(
        self, events: AsyncGenerator[bytes], seconds: float, refuse: Callable[[ServiceError], bytes]
    ) -> None:
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events, self._seconds, self._refuse = events, seconds, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            async with aclosing(self._events), asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # the server's time to drain is over
            last = self._refuse(DrainingError("the server is shutting down"))
            await send({"type": "http.response.body", "body": last, "more_body": False})


async def _admitted(events: AsyncGenerator[bytes]) -> None:
    await anext(events)


async def _events(body: schemas.PredictRequest, request: Request) -> AsyncGenerator[bytes]:
    """Yield empty bytes once the request is admitted, then its events.

    Raises `ServiceError` where the request is refused. Later errors are events.
    """
    engine = engine_of(request)
    with engine.progress_feed() as feed:
        work = asyncio.create_task(engine.predict(predict_request(body), feed=feed))
        work.add_done_callback(lambda _: feed.wake())
        try:
            while not feed.latest.admitted:
                await feed.changed()
                if work.done():
                    await work
            yield b""
            try:
                writer = _EventWriter()
                while not work.done():
                    changed = await feed.changed(KEEP_ALIVE_SECONDS)
                    new = await asyncio.to_thread(writer.new_events, feed.latest)
                    check_key(request)
                    if new or not changed:
                        yield new or format_sse_event(comment="keep-alive")
                answered = await work
                check_key(request)
                answer = await asyncio.to_thread(answer_of, answered, body, request)
                yield await asyncio.to_thread(writer.last_events, answered, answer)
            except Exception as error:
                yield error_event(error, request)
        finally:
            work.cancel()


class _EventWriter:
    """Writes progress as events, each once. Any thread may call it, one at a time."""

    def __init__(self) -> None:
        self._steps = 0
        self._obtained = False
        self._sent: dict[int, Prediction] = {}

    def new_events(self, progress: Progress) -> bytes:
        """Return the events of what was not sent yet."""
        events = [*self._step_events(progress.losses, progress.steps)]
        if progress.obtained is not None and not self._obtained:
            events += self._adapter_events(progress.obtained)
        events += self._prediction_events(progress.predictions, prediction_object)
        return b"".join(events)

    def last_events(self, answered: Answered, answer: schemas.PredictResponse) -> bytes:
        """Return the events that are left when the request is done; `answer` renders `answered`."""
        if answered.calibrated_gate:  # predictions are sent again, with ids and prediction sets
            self._sent.clear()
        events = [] if self._obtained else [*self._adapter_events(answered)]
        events += self._prediction_events(answered.predictions, lambda index, _: answer.predictions[index])
        return b"".join([*events, event_of("done", answer, leave_out="predictions")])

    def _step_events(self, losses: Sequence[float], steps: int) -> Iterator[bytes]:
        for step in range(self._steps, len(losses)):
            yield event_of("step", schemas.AdaptStep(step=step + 1, steps=steps, loss=losses[step]))
            self._steps = step + 1

    def _adapter_events(self, obtained: Obtained) -> Iterator[bytes]:
        self._obtained = True
        manifest = obtained.adapter.manifest
        if obtained.cache is CacheOutcome.MISS:  # the last steps may not be sent yet
            yield from self._step_events(manifest.losses, len(manifest.losses))
        found = schemas.AdapterFound(
            adapter_id=manifest.id, cache=obtained.cache.value, warnings=list(manifest.warnings)
        )
        yield event_of("adapter", found)

    def _prediction_events(
        self,
        predictions: Sequence[DecidedPrediction | None],
        show: Callable[[int, DecidedPrediction], schemas.Prediction],
    ) -> Iterator[bytes]:
        for index, decided in enumerate(predictions):
            prediction, sent = None if decided is None else decided.prediction, self._sent.get(index)
            # A prediction that is done anew after its worker was lost has fewer samples at first.
            older = sent is not None and sent.settled and prediction is not None and not prediction.settled
            if decided is None or prediction is None or prediction == sent or older:
                continue
            self._sent[index] = prediction
            yield event_of("prediction" if prediction.settled else "refinement", show(index, decided))


def event_of(name: str, data: schemas.WireModel, leave_out: str = "") -> bytes:
    """Return an event whose data is `data`, without the field `leave_out`."""
    text = data.model_dump_json(exclude_none=True, exclude={leave_out})
    return data_event(text, name)


def error_event(error: Exception, request: Request) -> bytes:
    """Return the event of an error, in the form of the request's surface."""
    if not isinstance(error, ServiceError | AbmllError):
        log.error("request %s failed", request_id(request), exc_info=error)
    body = form_of(request).shape(from_exception(error), request_id(request))
    return data_event(to_json(body).decode(), "error")
