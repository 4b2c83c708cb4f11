"""The blocking client."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Self, Unpack

import httpx
from tenacity import Retrying

from abmll_client import calls, events, frames, plans
from abmll_client.arguments import (
    AdaptFields,
    CalibrateFields,
    DecideFields,
    InputsLike,
    PredictFields,
    SupportLike,
)
from abmll_client.calls import AnswerT, Call
from abmll_client.concurrency import Places
from abmll_client.connection import (
    BROKEN,
    DEFAULT_CONCURRENCY,
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    Connection,
    connection_failed,
    environment_checked,
    request_arguments,
    with_key,
)
from abmll_client.errors import ConnectionFailedError, UnavailableError
from abmll_client.events import EventT, StreamCall, StreamEvent
from abmll_client.models import (
    Adapter,
    AdapterList,
    AdapterProgress,
    Calibration,
    CreateAdapterResponse,
    DecidedInput,
    DecideResponse,
    DeletedAdapter,
    DeletedCalibration,
    DeletedName,
    DiagnoseResponse,
    FeedbackResponse,
    LimitsReport,
    ModelCard,
    Name,
    NameList,
    NameWithHistory,
    PinnedAdapter,
    Prediction,
    PredictResponse,
)
from abmll_client.plans import Plan, ResultT
from abmll_client.questions import CasesLike, QuestionLike
from abmll_client.retries import polling, waiting
from abmll_client.streams import EventStream

if TYPE_CHECKING:
    import pandas as pd


class Client(Connection):
    """A blocking client; threads may share it. Use it in a `with` statement, or `close` it.

    `timeout` is httpx's (seconds, or `httpx.Timeout`), and so is `transport`. After 408, 429, 502,
    503, 504 or a broken connection a request is sent again, at most `max_retries` times. At most
    `max_concurrency` requests for work are at the server at a time; others wait for their turn, and
    a request that is refused (429) because of others of this client waits for one of them to end,
    without counting as sent again. `headers` go with every request and are never logged, and so
    does the key `api_key`, by default that of the environment variable `ABMLL_API_KEY`. A server on
    this machine is reached without the proxy that the environment may name.

    Methods raise `ClientError`: `StatusError` for what the server refuses, `ConnectionFailedError`
    where there is no answer. Making a client raises it for a proxy that cannot be used.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 3,
        max_concurrency: int = DEFAULT_CONCURRENCY,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, max_retries)
        self._places = Places(max_concurrency)
        if transport is None and self._on_this_machine:
            transport = httpx.HTTPTransport()  # httpx takes no proxy beside a transport
        with environment_checked():
            self._http = httpx.Client(
                base_url=self.base_url,
                auth=self._auth,
                timeout=timeout,
                headers=with_key(headers, api_key),
                transport=transport,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def create_adapter(
        self,
        support: SupportLike | None = None,
        *,
        questions: Iterable[QuestionLike] | None = None,
        cases: CasesLike | None = None,
        wait: float | None = None,
        on_progress: Callable[[AdapterProgress], object] | None = None,
        **fields: Unpack[AdaptFields],
    ) -> CreateAdapterResponse:
        """Adapt to labelled examples, or to `cases` that answer `questions`.

        The same support and fields always give the same id, and are adapted once. `options` belong
        to `support`. With `wait`, in seconds, the adaptation goes on without this client: it asks
        again and again, in requests of 20 s at most, and calls `on_progress` with each answer.
        Raises `NotAdaptedError` then, where the adaptation fails or takes longer.
        """
        call = calls.create_adapter(support, questions, cases, **fields)
        return self._send(call) if wait is None else self._run(plans.create_adapter(call, wait, on_progress))

    def begin_adapter(
        self,
        support: SupportLike | None = None,
        *,
        questions: Iterable[QuestionLike] | None = None,
        cases: CasesLike | None = None,
        **fields: Unpack[AdaptFields],
    ) -> AdapterProgress:
        """Begin an adaptation that goes on without this client, and return how far it is.

        `follow` shows the rest. Arguments are as of `create_adapter`. Begun again, it goes on.
        """
        call = calls.create_adapter(support, questions, cases, **fields)
        return self._run(plans.begin_adapter(call))

    def adapters(self, page_size: int = 100) -> Iterator[Adapter]:
        """Iterate over every adapter that the server keeps, ordered by id, asking page by page."""
        call: Call[AdapterList] | None = calls.adapters(page_size)
        while call is not None:
            page = self._send(call)
            yield from page.data
            call = calls.adapters_after(page, page_size)

    def adapter(self, adapter_id: str) -> Adapter:
        """Get one adapter."""
        return self._send(calls.adapter(adapter_id))

    def wait_for_adapter(self, adapter_id: str, seconds: float = 300.0) -> Adapter:
        """Return an adapter once it is there: one that is being made, such as that of `refines_to`.

        Raises the last error after `seconds`, and at once where the adapter is not being made.
        """
        adapter: Adapter = Retrying(**waiting(seconds))(self._once, calls.adapter(adapter_id))
        return adapter

    def progress(self, adapter_id: str, wait: float = 0.0) -> AdapterProgress:
        """Get how far the making of an adapter is, once that is final or after `wait` seconds."""
        return self._send(calls.progress(adapter_id, int(wait * 1000)))

    def follow(self, adapter_id: str) -> EventStream[AdapterProgress]:
        """Get each change of the making of an adapter, to its end; the last status is final.

        Where the making goes on beyond the server's `long_deadline_seconds`, or the connection
        breaks, raises `ConnectionFailedError`: follow it again. `timeout` is as of `stream`.
        """
        return EventStream(self._events(events.follow(adapter_id)))

    def cancel(self, adapter_id: str) -> AdapterProgress:
        """End an adaptation that was begun with `wait`. What has ended stays as it is."""
        return self._send(calls.cancel(adapter_id))

    def delete(self, adapter_id: str) -> DeletedAdapter:
        """Delete an adapter, on disk too.

        Raises `NotFoundError` also where a first attempt deleted it and its answer was lost, and
        `InvalidRequestError` with the code `adapter_named` while a name points to it.
        """
        return self._send(calls.delete(adapter_id))

    def pin(self, adapter_id: str) -> PinnedAdapter:
        """Keep an adapter in the server's memory."""
        return self._send(calls.pin(adapter_id))

    def unpin(self, adapter_id: str) -> PinnedAdapter:
        """Let an adapter leave the server's memory again."""
        return self._send(calls.unpin(adapter_id))

    def put_name(
        self, name: str, adapter_id: str, *, if_version: int | None = None, note: str | None = None
    ) -> Name:
        """Point a name to an adapter, by a new version of the name.

        With `if_version`, only where that is the number of its current version (0: there is no such
        name), else `InvalidRequestError` with the code `name_changed`. A request whose answer was
        lost is sent again: that makes one more version, or with `if_version` is refused.
        """
        return self._send(calls.put_name(name, adapter_id, if_version=if_version, note=note))

    def names(self, page_size: int = 100) -> Iterator[Name]:
        """Iterate over every name, in their order, asking page by page."""
        call: Call[NameList] | None = calls.names(page_size)
        while call is not None:
            page = self._send(call)
            yield from page.data
            call = calls.names_after(page, page_size)

    def name(self, name: str, *, before: int | None = None) -> NameWithHistory:
        """Get one name with its newest versions, those before the number `before`."""
        return self._send(calls.name(name, before))

    def rollback_name(
        self, name: str, version: int, *, if_version: int | None = None, note: str | None = None
    ) -> Name:
        """Point a name to the adapter of an earlier version, by a new version; as `put_name`."""
        return self._send(calls.rollback_name(name, version, if_version=if_version, note=note))

    def delete_name(self, name: str) -> DeletedName:
        """Delete a name with its versions; the adapters stay."""
        return self._send(calls.delete_name(name))

    def predict(self, inputs: InputsLike, **fields: Unpack[PredictFields]) -> PredictResponse:
        """Answer `inputs` in one request, with `model=` and a name, `adapter_id=` or `support=`."""
        return self._send(calls.predict(inputs, **fields))

    def stream(self, inputs: InputsLike, **fields: Unpack[PredictFields]) -> EventStream[StreamEvent]:
        """Answer `inputs` as events: predictions as they stand, refined as samples arrive.

        Arguments are as of `predict`, and the last event, `done`, has what `predict` returns. Read
        the events inside a `with` statement: where it is left, the server ends the work. The server
        bounds a stream by its `deadline_seconds` and sends a sign of life every 15 s, so the
        client's `timeout`, which is the longest silence, should be longer. A stream is one of
        `max_concurrency` requests until it ends.
        """
        return EventStream(self._events(events.stream(inputs, **fields)))

    def predict_all(self, inputs: InputsLike, **fields: Unpack[PredictFields]) -> list[Prediction]:
        """Answer any number of `inputs`, in as many requests as the server's limits ask for."""
        return self._run(plans.predict_all(inputs, **fields))

    def predict_frame(
        self, frame: pd.DataFrame, *, text: str = "text", **fields: Unpack[PredictFields]
    ) -> pd.DataFrame:
        """Answer the column `text` of any number of rows; returns `frames.predictions_frame`."""
        return self._run(frames.predict_frame(frame, text, **fields))

    def decide(
        self,
        inputs: Iterable[str],
        questions: Iterable[QuestionLike] | None = None,
        *,
        cases: CasesLike | None = None,
        **fields: Unpack[DecideFields],
    ) -> DecideResponse:
        """Answer `questions` about each of `inputs` in one request.

        `model` is a name or an adapter, whose own questions are asked without `questions`, or by
        their names; by default the base model answers (zero-shot). With `cases`, an adapter is made
        first.
        """
        return self._send(calls.decide(inputs, questions, cases, **fields))

    def decide_all(
        self,
        inputs: Iterable[str],
        questions: Iterable[QuestionLike] | None = None,
        *,
        cases: CasesLike | None = None,
        **fields: Unpack[DecideFields],
    ) -> list[DecidedInput]:
        """As `decide`, for any number of `inputs`, in as many requests as limits ask for."""
        return self._run(plans.decide_all(inputs, questions, cases, **fields))

    def decide_frame(
        self,
        frame: pd.DataFrame,
        questions: Iterable[QuestionLike] | None = None,
        *,
        text: str = "text",
        cases: CasesLike | None = None,
        **fields: Unpack[DecideFields],
    ) -> pd.DataFrame:
        """As `decide_all` of the column `text`; returns `frames.decisions_frame`."""
        return self._run(frames.decide_frame(frame, text, questions, cases, **fields))

    def diagnose(
        self, adapter_id: str, *, folds: int | None = None, samples: int | None = None
    ) -> DiagnoseResponse:
        """Estimate an adapter on its own support.

        The diagnosis has held-out accuracy, gains, suspicious labels and a verdict.
        """
        return self._send(calls.diagnose(adapter_id, folds=folds, samples=samples))

    def calibrate(
        self,
        adapter_id: str,
        examples: SupportLike,
        *,
        replace: bool = False,
        **fields: Unpack[CalibrateFields],
    ) -> Calibration:
        """Calibrate an adapter on any number of labelled examples, for its certified gates.

        Adds to the calibration that is there, unless `replace` is set.
        """
        return self._run(plans.calibrate(adapter_id, examples, replace=replace, **fields))

    def calibration(self, adapter_id: str) -> Calibration:
        """Get the adapter's calibration, with what it certifies for some usual targets."""
        return self._send(calls.calibration(adapter_id))

    def delete_calibration(self, adapter_id: str) -> DeletedCalibration:
        """Delete the adapter's calibration, its feedback and its alarms."""
        return self._send(calls.delete_calibration(adapter_id))

    def feedback(self, adapter_id: str, labels: Mapping[str, str]) -> FeedbackResponse:
        """Send the right answers of predictions, by `prediction_id`."""
        return self._send(calls.feedback(adapter_id, labels))

    def models(self) -> list[ModelCard]:
        """List the models that the server serves."""
        return self._send(calls.served()).data

    def limits(self) -> LimitsReport:
        """Get what the server accepts."""
        return self._send(calls.limits())

    def ready(self) -> bool:
        """Ask once whether the server takes work now."""
        try:
            self._once(calls.ready())
        except (UnavailableError, ConnectionFailedError):
            return False
        return True

    def wait_until_ready(self, seconds: float = 300.0) -> None:
        """Return once the server takes work.

        Raises the last error after `seconds`, or at once if the server will not recover.
        """
        Retrying(**polling(seconds))(self._once, calls.ready())

    def _run(self, plan: Plan[ResultT]) -> ResultT:
        try:
            call = next(plan)
            while True:
                call = plan.send(self._send(call))
        except StopIteration as done:
            result: ResultT = done.value
            return result

    def _send(self, call: Call[AnswerT]) -> AnswerT:
        answer: AnswerT = Retrying(**self._retries.arguments())(self._in_turn, call)
        return answer

    def _in_turn(self, call: Call[AnswerT]) -> AnswerT:
        if call.method != "POST":  # the server bounds work only
            return self._once(call)
        return self._places.run(lambda: self._once(call), patient=self._retries.max_retries > 0)

    def _once(self, call: Call[AnswerT]) -> AnswerT:
        try:
            response = self._http.request(**request_arguments(call))
        except BROKEN as error:
            raise connection_failed(call, error) from error
        return call.read(response)

    def _events(self, call: StreamCall[EventT]) -> Generator[EventT]:
        bounded = call.request.method == "POST"  # the server bounds work only

        def begin() -> tuple[EventT, Generator[EventT]]:
            if not bounded:
                return self._begin(call)
            return self._places.keep(lambda: self._begin(call), patient=self._retries.max_retries > 0)

        first, rest = Retrying(**self._retries.arguments())(begin)
        try:
            with closing(rest):
                yield first
                yield from rest
        finally:
            if bounded:
                self._places.leave()

    def _begin(self, call: StreamCall[EventT]) -> tuple[EventT, Generator[EventT]]:
        """Send the request; return its first event, and the rest with the open connection."""
        received = self._received(call)
        return next(received), received

    def _received(self, call: StreamCall[EventT]) -> Generator[EventT]:
        reader = call.reader()
        try:
            with self._http.stream(**request_arguments(call.request)) as response:
                if not response.is_success:
                    response.read()
                call.check(response)
                for piece in response.iter_bytes():
                    yield from reader.read(piece)
        except BROKEN as error:
            if not reader.ended:
                raise connection_failed(call.request, error) from error
        reader.check_end()
