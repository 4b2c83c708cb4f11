"""Clients that adapt and predict until they are stopped, and write down what became of each
request.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np

from benchmarks.chaos.oracle import Oracle, adapter_body
from benchmarks.chaos.report import Report

RETRYABLE = {429, 503, 504, 507}
PAUSE_SECONDS = 0.05  # after a refusal or a lost connection, so that clients do not only ask again
_numbers = itertools.count(100_000)
"""No two adaptations of a process are the same."""


@dataclass(frozen=True)
class Outcome:
    """One request: its status, or 0 where the connection was lost, or -1 where no answer came in
    time.

    `right` compares a prediction with the oracle. `at` is `time.monotonic()` at the end.
    """

    kind: str
    status: int
    code: str
    seconds: float
    retry_after: bool
    right: bool | None
    at: float

    @property
    def name(self) -> str:
        """The status with its code, for tables."""
        shown = {0: "connection lost", -1: "no answer in time"}.get(self.status, str(self.status))
        return f"{shown} {self.code}".strip()

    @property
    def clear(self) -> bool:
        """Whether it succeeded, or says when to try again."""
        return self.status in {200, 201} or (self.status in RETRYABLE and self.retry_after)


def code_of(answer: httpx.Response) -> str:
    """Return the code of an error, of our own form; empty for a success."""
    if answer.status_code < 400:
        return ""
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "?"


class Load:
    """Clients of a server: some predict what the oracle knows, some make new adapters.

    `url` may change while they run. `acknowledged` are the adapters that clients were told of. A
    request without an answer after `most_seconds` counts as hanging.
    """

    def __init__(
        self,
        url: str,
        oracle: Oracle,
        *,
        predictors: int = 4,
        adapters: int = 2,
        steps: int = 16,
        most_seconds: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url, self._oracle, self._steps = url, oracle, steps
        self._predictors, self._adapters, self._most_seconds = predictors, adapters, most_seconds
        self._headers = dict(headers or {})
        self.outcomes: list[Outcome] = []
        self.acknowledged: list[str] = []
        self._stopping = asyncio.Event()

    @property
    def gone(self) -> bool:
        """Whether the last request found no server."""
        return bool(self.outcomes) and self.outcomes[-1].status == 0

    def stop(self) -> None:
        """Send no more requests; those that run end."""
        self._stopping.set()

    async def __aenter__(self) -> Self:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self._http = httpx.AsyncClient(timeout=self._most_seconds, limits=limits, headers=self._headers)
        loops = [self._repeat(self._predict) for _ in range(self._predictors)]
        loops += [self._repeat(self._adapt) for _ in range(self._adapters)]
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the requests that run end, and stop."""
        self.stop()
        await asyncio.gather(*self._tasks)
        await self._http.aclose()

    async def _repeat(self, send: Callable[[int], Coroutine[Any, Any, Outcome]]) -> None:
        for number in itertools.count():
            if self._stopping.is_set():
                return
            outcome = await send(number)
            self.outcomes.append(outcome)
            if outcome.status not in {200, 201}:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _predict(self, number: int) -> Outcome:
        asked = self._oracle.asked[(number * 7 + 3) % len(self._oracle.asked)]
        outcome, answer = await self.send("predict", "/v1/predict", asked.body)
        if answer is None or answer.status_code != 200:
            return outcome
        right = asked.right(answer.json())
        return Outcome(outcome.kind, 200, "", outcome.seconds, False, right, outcome.at)

    async def _adapt(self, number: int) -> Outcome:
        body = adapter_body(next(_numbers), steps=self._steps)
        outcome, answer = await self.send("adapt", "/v1/adapters", body)
        if answer is not None and answer.status_code in {200, 201}:
            self.acknowledged.append(answer.json()["id"])
        return outcome

    async def send(
        self, kind: str, path: str, body: Mapping[str, Any]
    ) -> tuple[Outcome, httpx.Response | None]:
        """Send one request and return what became of it, without writing it down."""
        began = time.monotonic()
        try:
            answer = await self._http.post(f"{self.url}{path}", json=body)
        except httpx.TimeoutException:
            now = time.monotonic()
            return Outcome(kind, -1, "", now - began, False, None, now), None
        except httpx.TransportError as error:
            now = time.monotonic()
            return Outcome(kind, 0, type(error).__name__, now - began, False, None, now), None
        now = time.monotonic()
        retry = "retry-after" in answer.headers
        return Outcome(kind, answer.status_code, code_of(answer), now - began, retry, None, now), answer


def outcomes_table(report: Report, heading: str, outcomes: Sequence[Outcome]) -> None:
    """Add a table of requests by kind and status, with percentiles of their seconds."""
    rows: list[list[object]] = []
    for kind, name in sorted({(o.kind, o.name) for o in outcomes}):
        seconds = [o.seconds for o in outcomes if (o.kind, o.name) == (kind, name)]
        percentiles = (float(np.percentile(seconds, p)) for p in (50, 95, 100))
        rows.append([kind, name, len(seconds), *percentiles])
    report.table(heading, ["request", "answer", "number", "p50 s", "p95 s", "most s"], rows)


def check_outcomes(
    report: Report,
    outcomes: Sequence[Outcome],
    where: str = "",
    *,
    lost_connections: bool = False,
) -> None:
    """Check that answers are right, that no request hangs, and that errors are clear.

    `where` begins each promise. With `lost_connections`, the fault itself ends connections.
    """
    predictions = [o for o in outcomes if o.right is not None]
    wrong = sum(not o.right for o in predictions)
    report.check(
        f"{where}0 wrong answers", f"{wrong} of {len(predictions)}", wrong == 0 and bool(predictions)
    )
    hung = sum(o.status == -1 for o in outcomes)
    longest = max((o.seconds for o in outcomes), default=0.0)
    report.check(
        f"{where}no request hangs", f"{hung} without an answer; the longest took {longest:.2f} s", hung == 0
    )
    unclear = Counter(
        f"{o.kind} {o.name}"
        for o in outcomes
        if not (o.clear or o.status == -1 or (lost_connections and o.status == 0))
    )
    report.none(f"{where}every request succeeds or gets a retryable error with Retry-After", unclear)
