"""The requests that wait or run: how many, how long, and when a refused client may come back."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

from service.engine.answers import Timings
from service.engine.backlog import PRESENT_SECONDS, Backlog, Reservation
from service.engine.progress import ProgressFeed
from service.errors import DeadlineExceededError, QueueFullError, over_limit
from service.executors.contract import ServedModel
from service.metrics import Metrics
from service.request_notes import current_notes


@dataclass
class RequestContext:
    """One request in flight: its model, times, tenant and deadline.

    `served` is the default model, and once the adapter is known, the model of the adapter's
    posterior. `feed` is None unless the progress is streamed. `adapter_id` is None until it is
    known. `model` is the version of a name, where the request names its adapter by one.
    `refines_to` is as in `service.engine.answers.Obtained`. `reservation` is the request's work in
    the backlog, and None for work in the background.
    """

    served: ServedModel
    timings: Timings
    tenant: str
    deadline: asyncio.Timeout
    feed: ProgressFeed | None
    adapter_id: str | None = None
    model: str | None = None
    refines_to: str | None = None
    reservation: Reservation | None = None

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline; None without one."""
        when = self.deadline.when()
        return None if when is None else when - asyncio.get_running_loop().time()


class Traffic:
    """Counts requests, refuses more than `limit`, and ends those that take too long.

    While several tenants have requests, or were refused a moment ago, each has an equal part. It
    also refuses work that `backlog` has no room for. `background` returns how much work goes on: it
    continues for a while after requests have left, and counts too. Used from one event loop.
    """

    def __init__(self, limit: int, backlog: Backlog, background: Callable[[], int], metrics: Metrics) -> None:
        self._limit, self._backlog, self._background = limit, backlog, background
        self._metrics = metrics
        self._count = 0
        self._by_tenant: Counter[str] = Counter()
        self._refused: dict[str, float] = {}
        self._request_seconds = 1.0  # moving average of a request's share of the time, for Retry-After

    def __len__(self) -> int:
        return self._count

    def enter(self, tenant: str) -> None:
        """Count a request of a tenant until `leave`.

        Raises `QueueFullError` if too many are in flight, in all or of this tenant.
        """
        busy, now = max(self._count, self._background()), time.monotonic()
        self._refused = {name: when for name, when in self._refused.items() if now - when < PRESENT_SECONDS}
        present = len({*self._by_tenant, *self._refused, tenant})
        own, part = self._by_tenant[tenant], max(1, self._limit // present)
        if busy >= self._limit or own >= part:
            self._refused[tenant] = now
            found, limit = f"the server is busy with {busy} requests", str(self._limit)
            if present > 1:
                found, limit = (
                    f"this tenant has {own} requests",
                    f"{self._limit}, and while others wait {part}",
                )
            message = over_limit(found, limit, "queue_limit")
            raise QueueFullError(message, None, self._retry_after_seconds())
        self._count += 1
        self._by_tenant[tenant] += 1
        self._metrics.in_flight.set(self._count)

    def leave(self, tenant: str) -> None:
        """Count a request no more."""
        self._count -= 1
        self._by_tenant[tenant] -= 1
        self._by_tenant += Counter()  # without those that have none
        self._metrics.in_flight.set(self._count)

    @asynccontextmanager
    async def request(
        self,
        served: ServedModel,
        tenant: str,
        feed: ProgressFeed | None,
        deadline_seconds: float | None,
        work_seconds: float = 0.0,
    ) -> AsyncIterator[RequestContext]:
        """Count a request and enforce its deadline, until the context ends.

        `work_seconds` are the estimate of what an idle worker takes for it. One with a `feed` is
        counted already. One without a deadline, for which nobody waits, is not counted, and has no
        place in the backlog. Raises `DeadlineExceededError` and `QueueFullError`.
        """
        counted = feed is None and deadline_seconds is not None
        if counted:
            self.enter(tenant)
        started = time.monotonic()
        deadline = asyncio.timeout(deadline_seconds)
        context = RequestContext(served, Timings(), tenant, deadline, feed)
        notes = current_notes()
        reserving = nullcontext() if deadline_seconds is None else self._backlog.reserve(tenant, work_seconds)
        try:
            with reserving as context.reservation:
                async with deadline:
                    yield context
        except (TimeoutError, DeadlineExceededError) as error:
            # The executor has the deadline too, and may raise first.
            if deadline_seconds is None or (isinstance(error, TimeoutError) and not deadline.expired()):
                raise
            limit = f"{deadline_seconds:g} s (setting deadline_seconds)"
            message = f"not done in {limit}; an adaptation goes on for a while, so try again"
            raise DeadlineExceededError(
                message, None, self._retry_after_seconds(), context.adapter_id
            ) from error
        finally:  # the result holds these timings, so they are set before it is returned
            context.timings.total_seconds = time.monotonic() - started
            if deadline_seconds is not None:
                share = context.timings.total_seconds / max(1, self._count)
                self._request_seconds += 0.1 * (share - self._request_seconds)
            if notes is not None and deadline_seconds is not None:
                notes.adapter_id, notes.seconds = context.adapter_id, context.timings.by_part()
            if counted:
                self.leave(tenant)

    def _retry_after_seconds(self) -> int:
        """Return when the requests in flight will be done (Little's law), or later; from 1 to 60 s.

        It is drawn at random after it is bounded, so that clients do not all return at once.
        """
        expected = min(40.0, max(1.0, self._count * self._request_seconds))
        return math.ceil(expected * random.uniform(1.0, 1.5))  # noqa: S311 - no secret
