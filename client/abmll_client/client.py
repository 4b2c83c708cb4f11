"""The clients. What they send is described in `calls` and `plans`, when they send it again in `retries`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import httpx
from tenacity import AsyncRetrying, Retrying

from abmll_client import calls, frames, plans
from abmll_client.calls import AdaptFields, CalibrateFields, Call, InputsLike, PredictFields, SupportLike
from abmll_client.errors import ConnectionFailedError, UnavailableError
from abmll_client.plans import Plan
from abmll_client.retries import Retries, polling
from service import schemas

if TYPE_CHECKING:
    import pandas as pd

AnswerT = TypeVar("AnswerT", bound=schemas.WireModel)
ResultT = TypeVar("ResultT")

DEFAULT_URL = "http://127.0.0.1:8000"
# The server gives up after its `deadline_seconds`, by default 300, and its answer says what a retry will find.
DEFAULT_TIMEOUT = httpx.Timeout(310.0, connect=5.0)
_BROKEN = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)


class _Shared:
    """What both clients keep."""

    def __init__(self, base_url: str, max_retries: int) -> None:
        url = httpx.URL(base_url)
        # Not left in the address: httpx logs it.
        self._auth = (url.username, url.password) if url.userinfo else None
        self.base_url = str(url.copy_with(userinfo=b""))
        self._retries = Retries(max_retries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def __deepcopy__(self, memo: object) -> Self:
        """A copy is this client: connections are shared. `sklearn.clone` copies the parameters of estimators."""
        return self


def _arguments(call: Call[Any]) -> dict[str, Any]:
    """Of `call`, for `request` of httpx."""
    sent: dict[str, Any] = {"method": call.method, "url": call.path, "json": call.body, "params": call.query}
    return sent if call.timeout_seconds is None else {**sent, "timeout": call.timeout_seconds}


def _broken(call: Call[Any], error: httpx.TransportError) -> ConnectionFailedError:
    return ConnectionFailedError(f"{call.method} {call.path}: {type(error).__name__}: {error}")


class Client(_Shared):
    """A blocking client; threads may share it. Use it in a `with` statement, or `close` it.

    `timeout` is that of httpx (seconds, or `httpx.Timeout`); a request is sent at most `max_retries` times more after 408,
    429, 502, 503, 504 or a broken connection. `headers` go with every request and are never logged. `transport` is httpx's.

    Methods raise `ClientError`: `StatusError` for what the server refuses, `ConnectionFailedError` where there is no answer.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 3,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, max_retries)
        self._http = httpx.Client(
            base_url=self.base_url, auth=self._auth, timeout=timeout, headers=headers, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def create_adapter(
        self, support: SupportLike, **fields: Unpack[AdaptFields]
    ) -> schemas.CreateAdapterResponse:
        """Adapt to labelled examples. The same support and fields always give the same id, and are adapted once."""
        return self._send(calls.create_adapter(support, **fields))

    def adapters(self, page_size: int = 100) -> Iterator[schemas.Adapter]:
        """Every adapter that the server keeps, ordered by id; asked for a page at a time."""
        call: Call[schemas.AdapterList] | None = calls.adapters(page_size)
        while call is not None:
            page = self._send(call)
            yield from page.data
            call = calls.adapters_after(page, page_size)

    def adapter(self, adapter_id: str) -> schemas.Adapter:
        """One adapter."""
        return self._send(calls.adapter(adapter_id))

    def delete(self, adapter_id: str) -> schemas.DeletedAdapter:
        """Forget an adapter, on disk too. `NotFoundError` also where a first attempt deleted it and its answer was lost."""
        return self._send(calls.delete(adapter_id))

    def pin(self, adapter_id: str) -> schemas.PinnedAdapter:
        """Keep an adapter in the server's memory."""
        return self._send(calls.pin(adapter_id))

    def unpin(self, adapter_id: str) -> schemas.PinnedAdapter:
        """Let an adapter leave the server's memory again."""
        return self._send(calls.unpin(adapter_id))

    def predict(self, inputs: InputsLike, **fields: Unpack[PredictFields]) -> schemas.PredictResponse:
        """Answer `inputs` in one request, with `adapter_id=` or with `support=`."""
        return self._send(calls.predict(inputs, **fields))

    def predict_all(self, inputs: InputsLike, **fields: Unpack[PredictFields]) -> list[schemas.Prediction]:
        """Answer any number of `inputs`, in as many requests as the server's limits ask for."""
        return self._run(plans.predict_all(inputs, **fields))

    def predict_frame(
        self, frame: pd.DataFrame, *, text: str = "text", **fields: Unpack[PredictFields]
    ) -> pd.DataFrame:
        """Answer the column `text` of any number of rows; see `frames.predictions_frame` for what comes back."""
        return self._run(frames.predict_frame(frame, text, **fields))

    def diagnose(
        self, adapter_id: str, *, folds: int | None = None, samples: int | None = None
    ) -> schemas.DiagnoseResponse:
        """How good the adapter is, by its own support: accuracy when held out, gains, suspicious labels, a verdict."""
        return self._send(calls.diagnose(adapter_id, folds=folds, samples=samples))

    def calibrate(
        self,
        adapter_id: str,
        examples: SupportLike,
        *,
        replace: bool = False,
        **fields: Unpack[CalibrateFields],
    ) -> schemas.Calibration:
        """Label any number of examples for calibrated gates; adds to what is there unless `replace` is set."""
        return self._run(plans.calibrate(adapter_id, examples, replace=replace, **fields))

    def calibration(self, adapter_id: str) -> schemas.Calibration:
        """The adapter's calibration, with what it certifies for some usual targets."""
        return self._send(calls.calibration(adapter_id))

    def delete_calibration(self, adapter_id: str) -> schemas.DeletedCalibration:
        """Forget the adapter's calibration, its feedback and its alarms."""
        return self._send(calls.delete_calibration(adapter_id))

    def feedback(self, adapter_id: str, labels: Mapping[str, str]) -> schemas.FeedbackResponse:
        """Tell the right answers to predictions, by `prediction_id`."""
        return self._send(calls.feedback(adapter_id, labels))

    def models(self) -> list[schemas.ModelCard]:
        """The models that the server serves."""
        return self._send(calls.models()).data

    def limits(self) -> schemas.LimitsReport:
        """What the server accepts."""
        return self._send(calls.limits())

    def ready(self) -> bool:
        """Whether the server takes work now; asked once."""
        try:
            self._once(calls.ready())
        except (UnavailableError, ConnectionFailedError):
            return False
        return True

    def wait_until_ready(self, seconds: float = 300.0) -> None:
        """Return once the server takes work. Raises the last error after `seconds`, or at once if it will not recover."""
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
        answer: AnswerT = Retrying(**self._retries.arguments())(self._once, call)
        return answer

    def _once(self, call: Call[AnswerT]) -> AnswerT:
        try:
            response = self._http.request(**_arguments(call))
        except _BROKEN as error:
            raise _broken(call, error) from error
        return call.read(response)


class AsyncClient(_Shared):
    """As `Client`, with methods to await. Use it in an `async with` statement, or await `aclose`."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 3,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, max_retries)
        self._http = httpx.AsyncClient(
            base_url=self.base_url, auth=self._auth, timeout=timeout, headers=headers, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def create_adapter(
        self, support: SupportLike, **fields: Unpack[AdaptFields]
    ) -> schemas.CreateAdapterResponse:
        """As `Client.create_adapter`."""
        return await self._send(calls.create_adapter(support, **fields))

    async def adapters(self, page_size: int = 100) -> AsyncIterator[schemas.Adapter]:
        """As `Client.adapters`."""
        call: Call[schemas.AdapterList] | None = calls.adapters(page_size)
        while call is not None:
            page = await self._send(call)
            for adapter in page.data:
                yield adapter
            call = calls.adapters_after(page, page_size)

    async def adapter(self, adapter_id: str) -> schemas.Adapter:
        """As `Client.adapter`."""
        return await self._send(calls.adapter(adapter_id))

    async def delete(self, adapter_id: str) -> schemas.DeletedAdapter:
        """As `Client.delete`."""
        return await self._send(calls.delete(adapter_id))

    async def pin(self, adapter_id: str) -> schemas.PinnedAdapter:
        """As `Client.pin`."""
        return await self._send(calls.pin(adapter_id))

    async def unpin(self, adapter_id: str) -> schemas.PinnedAdapter:
        """As `Client.unpin`."""
        return await self._send(calls.unpin(adapter_id))

    async def predict(self, inputs: InputsLike, **fields: Unpack[PredictFields]) -> schemas.PredictResponse:
        """As `Client.predict`."""
        return await self._send(calls.predict(inputs, **fields))

    async def predict_all(
        self, inputs: InputsLike, **fields: Unpack[PredictFields]
    ) -> list[schemas.Prediction]:
        """As `Client.predict_all`."""
        return await self._run(plans.predict_all(inputs, **fields))

    async def predict_frame(
        self, frame: pd.DataFrame, *, text: str = "text", **fields: Unpack[PredictFields]
    ) -> pd.DataFrame:
        """As `Client.predict_frame`."""
        return await self._run(frames.predict_frame(frame, text, **fields))

    async def diagnose(
        self, adapter_id: str, *, folds: int | None = None, samples: int | None = None
    ) -> schemas.DiagnoseResponse:
        """As `Client.diagnose`."""
        return await self._send(calls.diagnose(adapter_id, folds=folds, samples=samples))

    async def calibrate(
        self,
        adapter_id: str,
        examples: SupportLike,
        *,
        replace: bool = False,
        **fields: Unpack[CalibrateFields],
    ) -> schemas.Calibration:
        """As `Client.calibrate`."""
        return await self._run(plans.calibrate(adapter_id, examples, replace=replace, **fields))

    async def calibration(self, adapter_id: str) -> schemas.Calibration:
        """As `Client.calibration`."""
        return await self._send(calls.calibration(adapter_id))

    async def delete_calibration(self, adapter_id: str) -> schemas.DeletedCalibration:
        """As `Client.delete_calibration`."""
        return await self._send(calls.delete_calibration(adapter_id))

    async def feedback(self, adapter_id: str, labels: Mapping[str, str]) -> schemas.FeedbackResponse:
        """As `Client.feedback`."""
        return await self._send(calls.feedback(adapter_id, labels))

    async def models(self) -> list[schemas.ModelCard]:
        """As `Client.models`."""
        return (await self._send(calls.models())).data

    async def limits(self) -> schemas.LimitsReport:
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
        answer: AnswerT = await AsyncRetrying(**self._retries.arguments())(self._once, call)
        return answer

    async def _once(self, call: Call[AnswerT]) -> AnswerT:
        try:
            response = await self._http.request(**_arguments(call))
        except _BROKEN as error:
            raise _broken(call, error) from error
        return call.read(response)
