"""Answers that come as events: the events, the requests for them, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import httpx

from abmll_client import calls, models
from abmll_client.arguments import InputsLike
from abmll_client.calls import Call, read_as
from abmll_client.errors import (
    ConnectionFailedError,
    UnreadableAnswerError,
    error_of,
    error_of_event,
)
from abmll_client.server_sent_events import EventParser, ServerSentEvent

EventT = TypeVar("EventT")


# ---- the events of a prediction ------------------------------------------------------------------


@dataclass(frozen=True)
class StepEvent:
    """A gradient step is made, where the request has its adapter made."""

    data: models.AdaptStep
    name: Literal["step"] = field(default="step", init=False)


@dataclass(frozen=True)
class AdapterEvent:
    """The adapter is there."""

    data: models.AdapterFound
    name: Literal["adapter"] = field(default="adapter", init=False)


@dataclass(frozen=True)
class RefinementEvent:
    """An input has got more samples, and will get yet more: the prediction as it stands."""

    data: models.Prediction
    name: Literal["refinement"] = field(default="refinement", init=False)


@dataclass(frozen=True)
class PredictionEvent:
    """An input is settled. Of several with one `index`, the last counts."""

    data: models.Prediction
    name: Literal["prediction"] = field(default="prediction", init=False)


@dataclass(frozen=True)
class DoneEvent:
    """The end: the whole answer, as `predict` returns it."""

    data: models.PredictResponse
    name: Literal["done"] = field(default="done", init=False)


StreamEvent: TypeAlias = StepEvent | AdapterEvent | RefinementEvent | PredictionEvent | DoneEvent
"""One event of a streamed prediction. `name` says which one it is."""


# ---- the requests --------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamCall(Generic[EventT]):
    """One request whose answer is a stream. `reader` makes what reads one such answer."""

    request: Call[Any]
    reader: Callable[[], EventReader[EventT]]

    def check(self, response: httpx.Response) -> None:
        """Raise the error of an answer that is no stream; the body of one that is not 2xx is read.

        Raises `StatusError` and `UnreadableAnswerError`.
        """
        if not response.is_success:
            raise error_of(response)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise UnreadableAnswerError(f"{_named(self.request)}: the answer is no stream of events")


def stream(inputs: InputsLike, **fields: Any) -> StreamCall[StreamEvent]:
    """Answer `inputs` as events, with `PredictFields`."""
    request = calls.predict(inputs, stream=True, **fields)
    count = len(request.body["inputs"]) if request.body else 0
    return StreamCall(request, lambda: EventReader(request, _Predictions(request, count).read))


def follow(adapter_id: str) -> StreamCall[models.AdapterProgress]:
    """Show each change of the making of an adapter."""
    request = calls.events(adapter_id)
    return StreamCall(request, lambda: EventReader(request, lambda event: _progress(request, event)))


# ---- how their answers are read ------------------------------------------------------------------


class EventReader(Generic[EventT]):
    """Reads one answer, piece by piece. `ended` says that its last event was read.

    `typed` makes events of what the server sends, and None of an event that this client does not
    know.
    """

    def __init__(self, request: Call[Any], typed: Callable[[ServerSentEvent], EventT | None]) -> None:
        self._request, self._typed, self._parser = request, typed, EventParser()
        self.ended = False

    def read(self, piece: bytes) -> Iterator[EventT]:
        """Yield the events that end in the next piece of the body.

        Raises `StatusError` for an event `error`, and `UnreadableAnswerError`.
        """
        for event in self._parser.feed(piece):
            if self.ended:
                return
            if event.name == "error":
                raise error_of_event(read_as(models.ErrorResponse, event.data, _named(self._request, event)))
            typed = self._typed(event)
            self.ended = event.name == "done"
            if typed is not None:
                yield typed

    def check_end(self) -> None:
        """Raise `ConnectionFailedError` where the body has ended before its last event."""
        if not self.ended:
            raise ConnectionFailedError(f"{_named(self._request)}: it ended before its event `done`")


class _Predictions:
    """The events of a prediction for `count` inputs, of which it puts the whole answer together."""

    def __init__(self, request: Call[Any], count: int) -> None:
        self._request, self._count = request, count
        self._settled: dict[int, models.Prediction] = {}

    def read(self, event: ServerSentEvent) -> StreamEvent | None:
        """Return the event with its record."""
        what = _named(self._request, event)
        if event.name == "step":
            return StepEvent(read_as(models.AdaptStep, event.data, what))
        if event.name == "adapter":
            return AdapterEvent(read_as(models.AdapterFound, event.data, what))
        if event.name == "refinement":
            return RefinementEvent(read_as(models.Prediction, event.data, what))
        if event.name == "prediction":
            prediction = read_as(models.Prediction, event.data, what)
            self._settled[prediction.index] = prediction
            return PredictionEvent(prediction)
        return DoneEvent(self._whole(event.data, what)) if event.name == "done" else None

    def _whole(self, data: str, what: str) -> models.PredictResponse:
        if sorted(self._settled) != list(range(self._count)):
            raise UnreadableAnswerError(f"{what}: it came before every input had its event `prediction`")
        try:
            rest = json.loads(data)
        except ValueError:
            rest = None
        if isinstance(rest, dict):
            rest["predictions"] = []
        answer = read_as(models.PredictResponse, json.dumps(rest), what)
        return answer.model_copy(update={"predictions": [self._settled[i] for i in range(self._count)]})


def _progress(request: Call[Any], event: ServerSentEvent) -> models.AdapterProgress | None:
    if event.name not in ("progress", "done"):
        return None
    return read_as(models.AdapterProgress, event.data, _named(request, event))


def _named(request: Call[Any], event: ServerSentEvent | None = None) -> str:
    """Return what messages call the request, or one event of its answer."""
    return f"{request.method} {request.path}" + (f", event {event.name}" if event else "")
