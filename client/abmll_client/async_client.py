"""The asynchronous client: method by method the blocking one. A test holds the two in step."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Self, Unpack

import httpx
from tenacity import AsyncRetrying

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
from abmll_client.concurrency import AsyncPlaces
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
from abmll_client.streams import AsyncEventStream

if TYPE_CHECKING:
    import pandas as pd


class AsyncClient(Connection):
    """As `Client`, with methods to await. Use it in an `async with` statement or await `aclose`."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 3,
        max_concurrency: int = DEFAULT_CONCURRENCY,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, max_retries)
        self._places = AsyncPlaces(max_concurrency)
        if transport is None and self._on_this_machine:
            transport = httpx.AsyncHTTPTransport()  # httpx takes no proxy beside a transport
        with environment_checked():
            self._http = httpx.AsyncClient(
                base_url=self.base_url,
                auth=self._auth,
                timeout=timeout,
                headers=with_key(headers, api_key),
                transport=transport,
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def create_adapter(
        self,
        support: SupportLike | None = None,
        *,
        questions: Iterable[QuestionLike] | None = None,
        cases: CasesLike | None = None,
        wait: float | None = None,
        on_progress: Callable[[AdapterProgress], object] | None = None,
        **fields: Unpack[AdaptFields],
    ) -> CreateAdapterResponse:
        """As `Client.create_adapter`."""
        call = calls.create_adapter(support, questions, cases, **fields)
        return await (
            self._send(call) if wait is None else self._run(plans.create_adapter(call, wait, on_progress))
        )

    async def begin_adapter(
        self,
        support: SupportLike | None = None,
        *,
        questions: Iterable[QuestionLike] | None = None,
        cases: CasesLike | None = None,
        **fields: Unpack[AdaptFields],
    ) -> AdapterProgress:
        """As `Client.begin_adapter`."""
        call = calls.create_adapter(support, questions, cases, **fields)
        return await self._run(plans.begin_adapter(call))

    async def adapters(self, page_size: int = 100) -> AsyncIterator[Adapter]:
        """As `Client.adapters`."""
        call: Call[AdapterList] | None = calls.adapters(page_size)
        while call is not None:
            page = await self._send(call)
            for adapter in page.data:
                yield adapter
            call = calls.adapters_after(page, page_size)

    async def adapter(self, adapter_id: str) -> Adapter:
        """As `Client.adapter`."""
        return await self._send(calls.adapter(adapter_id))

    async def wait_for_adapter(self, adapter_id: str, seconds: float = 300.0) -> Adapter:
        """As `Client.wait_for_adapter`."""
        adapter: Adapter = await AsyncRetrying(**waiting(seconds))(self._once, calls.adapter(adapter_id))
        return adapter

    async def progress(self, adapter_id: str, wait: float = 0.0) -> AdapterProgress:
        """As `Client.progress`."""
        return await self._send(calls.progress(adapter_id, int(wait * 1000)))

    def follow(self, adapter_id: str) -> AsyncEventStream[AdapterProgress]:
        """As `Client.follow`; what it returns is for `async with`."""
        return AsyncEventStream(self._events(events.follow(adapter_id)))

    async def cancel(self, adapter_id: str) -> AdapterProgress:
        """As `Client.cancel`."""
        return await self._send(calls.cancel(adapter_id))

    async def delete(self, adapter_id: str) -> DeletedAdapter:
        """As `Client.delete`."""
        return await self._send(calls.delete(adapter_id))

    async def pin(self, adapter_id: str) -> PinnedAdapter:
        """As `Client.pin`."""
        return await self._send(calls.pin(adapter_id))

    async def unpin(self, adapter_id: str) -> PinnedAdapter:
        """As `Client.unpin`."""
        return await self._send(calls.unpin(adapter_id))

    async def put_name(
        self, name: str, adapter_id: str, *, if_version: int | None = None, note: str | None = None
    ) -> Name:
        """As `Client.put_name`."""
        return await self._send(calls.put_name(name, adapter_id, if_version=if_version, note=note))

    async def names(self, page_size: int = 100) -> AsyncIterator[Name]:
        """As `Client.names`."""
        call: Call[NameList] | None = calls.names(page_size)
        while call is not None:
            page = await self._send(call)
            for name in page.data:
                yield name
            call = calls.names_after(page, page_size)

    async def name(self, name: str, *, before: int | None = None) -> NameWithHistory:
        """As `Client.name`."""
        return await self._send(calls.name(name, before))

    async def rollback_name(
        self, name: str, version: int, *, if_version: int | None = None, note: str | None = None
    ) -> Name:
        """As `Client.rollback_name`."""
        return await self._send(calls.rollback_name(name, version, if_version=if_version, note=note))

    async def delete_name(self, name: str) -> DeletedName:
        """As `Client.delete_name`."""
        return await self._send(calls.delete_name(name))

    async def predict(self, inputs: InputsLike, **fields: Unpack[PredictFields]) -> PredictResponse:
        """As `Client.predict`."""
        return await self._send(calls.predict(inputs, **fields))

    def stream(self, inputs: InputsLike, **fields: Unpack[PredictFields]) -> AsyncEventStream[StreamEvent]:
        """As `Client.stream`; what it returns is for `async with`."""
        return AsyncEventStream(self._events(events.stream(inputs, **fields)))

    async def predict_all(self, inputs: InputsLike, **fields: Unpack[PredictFields]) -> list[Prediction]:
        """As `Client.predict_all`."""
        return await self._run(plans.predict_all(inputs, **fields))

    async def predict_frame(
        self, frame: pd.DataFrame, *, text: str = "text", **fields: Unpack[PredictFields]
    ) -> pd.DataFrame:
        """As `Client.predict_frame`."""
        return await self._run(frames.predict_frame(frame, text, **fields))

    async def decide(
        self,
        inputs: Iterable[str],
        questions: Iterable[QuestionLike] | None = None,
        *,
        cases: CasesLike | None = None,
        **fields: Unpack[DecideFields],
    ) -> DecideResponse:
        """As `Client.decide`."""
        return await self._send(calls.decide(inputs, questions, cases, **fields))

    async def decide_all(
        self,
        inputs: Iterable[str],
        questions: Iterable[QuestionLike] | None = None,
        *,
        cases: CasesLike | None = None,
        **fields: Unpack[DecideFields],
    ) -> list[DecidedInput]:
        """As `Client.decide_all`."""
        return await self._run(plans.decide_all(inputs, questions, cases, **fields))

    async def decide_frame(
        self,
        frame: pd.DataFrame,
        questions: Iterable[QuestionLike] | None = None,
        *,
        text: str = "text",
        cases: CasesLike | None = None,
        **fields: Unpack[DecideFields],
    ) -> pd.DataFrame:
        """As `Client.decide_frame`."""
        return await self._run(frames.decide_frame(frame, text, questions, cases, **fields))

    async def diagnose(
        self, adapter_id: str, *, folds: int | None = None, samples: int | None = None
    ) -> DiagnoseResponse:
        """As `Client.diagnose`."""
        return await self._send(calls.diagnose(adapter_id, folds=folds, samples=samples))

    async def calibrate(
        self,
        adapter_id: str,
        examples: SupportLike,
        *,
        replace: bool = False,
        **fields: Unpack[CalibrateFields],
    ) -> Calibration:
        """As `Client.calibrate`."""
        return await self._run(plans.calibrate(adapter_id, examples, replace=replace, **fields))

    async def calibration(self, adapter_id: str) -> Calibration:
        """As `Client.calibration`."""
        return await self._send(calls.calibration(adapter_id))

    async def delete_calibration(self, adapter_id: str) -> DeletedCalibration:
        """As `Client.delete_calibration`."""
        return await self._send(calls.delete_calibration(adapter_id))

    async def feedback(self, adapter_id: str, labels: Mapping[str, str]) -> FeedbackResponse:
        """As `Client.feedback`."""
        return await self._send(calls.feedback(adapter_id, labels))

    async def models(self) -> list[ModelCard]:
        """As `Client.models`."""
        return (await self._send(calls.served())).data

    async def limits(self) -> LimitsReport:
        """As `Client.limits`."""
        return await self._send(calls.limits())

    async def ready(self) -> bool:
        """As `Client.ready`."""
        try:
            await self._once(calls.ready())
        except (UnavailableError, ConnectionFailedError):
            return False
        return True

    async def wait_until_ready(self, seconds: float = 300.0) -> None:
        """As `Client.wait_until_ready`."""
        await AsyncRetrying(**polling(seconds))(self._once, calls.ready())

    async def _run(self, plan: Plan[ResultT]) -> ResultT:
        try:
            call = next(plan)
            while True:
                call = plan.send(await self._send(call))
        except StopIteration as done:
            result: ResultT = done.value
            return result

    async def _send(self, call: Call[AnswerT]) -> AnswerT:
        answer: AnswerT = await AsyncRetrying(**self._retries.arguments())(self._in_turn, call)
        return answer

    async def _in_turn(self, call: Call[AnswerT]) -> AnswerT:
        if call.method != "POST":  # the server bounds work only
            return await self._once(call)
        return await self._places.run(lambda: self._once(call), patient=self._retries.max_retries > 0)

    async def _once(self, call: Call[AnswerT]) -> AnswerT:
        try:
            response = await self._http.request(**request_arguments(call))
        except BROKEN as error:
            raise connection_failed(call, error) from error
        return call.read(response)

    async def _events(self, call: StreamCall[EventT]) -> AsyncGenerator[EventT]:
        bounded = call.request.method == "POST"  # the server bounds work only

        async def begin() -> tuple[EventT, AsyncGenerator[EventT]]:
            if not bounded:
                return await self._begin(call)
            return await self._places.keep(lambda: self._begin(call), patient=self._retries.max_retries > 0)

        begun: tuple[EventT, AsyncGenerator[EventT]]
        begun = await AsyncRetrying(**self._retries.arguments())(begin)
        first, rest = begun
        try:
            async with aclosing(rest):
                yield first
                async for event in rest:
                    yield event
        finally:
            if bounded:
                self._places.leave()

    async def _begin(self, call: StreamCall[EventT]) -> tuple[EventT, AsyncGenerator[EventT]]:
        """Send the request; return its first event, and the rest with the open connection."""
        received = self._received(call)
        return await anext(received), received

    async def _received(self, call: StreamCall[EventT]) -> AsyncGenerator[EventT]:
        reader = call.reader()
        try:
            async with self._http.stream(**request_arguments(call.request)) as response:
                if not response.is_success:
                    await response.aread()
                call.check(response)
                async for piece in response.aiter_bytes():
                    for event in reader.read(piece):
                        yield event
        except BROKEN as error:
            if not reader.ended:
                raise connection_failed(call.request, error) from error
        reader.check_end()
