"""Long adaptations: they go on without their client, which may read how far they are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from model_store.adapters.statuses import StatusStore, StoredStatus
from model_store.errors import StoreError
from service.engine.adaptation_jobs import AdaptationJobs
from service.engine.answers import Obtained, Timings
from service.engine.backlog import Backlog
from service.engine.making import make_adapter
from service.engine.refining import Refining
from service.engine.registry import AdapterRegistry
from service.engine.specs import AdaptationSpec
from service.errors import (
    AdaptationCancelledError,
    AdaptationLostError,
    DeadlineExceededError,
    ServiceError,
    StoreFailedError,
    UnknownAdapterError,
    from_exception,
    store_failure,
)
from service.executors.contract import Executor, Losses
from service.metrics import Metrics

if TYPE_CHECKING:
    from model_store.adapters.manifest import AdapterManifest

log = logging.getLogger(__name__)
MOST_ENDED = 10_000
"""Most adaptations that ended without an adapter and are remembered; the oldest are forgotten
first.
"""
POLL_SECONDS = 0.5
"""Time between two looks at an adapter that is made for a request, not as a long adaptation."""


class Status(StrEnum):
    """Status of a long adaptation. The last four are final.

    EXPIRED: it was not done before its deadline. CANCELLED: a client asked for that.
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        """Return whether the status is final."""
        return self not in (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True)
class LongAdaptation:
    """How far the making of an adapter is, with its times (UTC, ISO 8601).

    `losses` are those of the gradient steps so far, of `steps` in all. `error` says why there is no
    adapter; None unless it ended without one.
    """

    adapter_id: str
    status: Status
    created: str | None = None
    steps: int = 0
    losses: Losses = ()
    finished: str | None = None
    error: ServiceError | None = None
    retry_after_seconds: int | None = None

    @classmethod
    def made(cls, manifest: AdapterManifest) -> LongAdaptation:
        """Return that of an adapter that is there."""
        losses = manifest.losses
        return cls(manifest.id, Status.SUCCEEDED, None, len(losses), tuple(losses), finished=manifest.created)


@dataclass(eq=False)
class _Entry:
    """One long adaptation of this process: its latest state, and what came of it.

    `stored` is set once its status is on disk, `changed` at each change of `latest`, and replaced.
    """

    latest: LongAdaptation
    tenant: str = ""  # whose share of the workers' time it has
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    stored: asyncio.Event = field(default_factory=asyncio.Event)
    obtained: Obtained | None = None
    task: asyncio.Task[None] | None = None
    cancelled: bool = False

    def set(self, latest: LongAdaptation) -> None:
        """Take a new state, and wake all that wait for one."""
        self.latest = latest
        self.changed.set()
        self.changed = asyncio.Event()


class LongAdaptations:
    """Owns the long adaptations of a tenant, one task for each. Used from one event loop.

    One ends `deadline_seconds` after it began: what has not begun on a worker by then never does.
    How it ended is kept for `keep_seconds`, on disk too. What the process before this one had not
    finished has failed.
    """

    def __init__(
        self,
        store: StatusStore,
        adapters: AdapterRegistry,
        refining: Refining,
        executor: Executor,
        metrics: Metrics,
        deadline_seconds: float,
        keep_seconds: float,
        backlog: Backlog,
    ) -> None:
        self._store, self._adapters, self._refining = store, adapters, refining
        self._executor, self._metrics = executor, metrics
        self._deadline_seconds, self._keep = deadline_seconds, timedelta(seconds=keep_seconds)
        self._backlog = backlog
        self._entries = {stored.adapter_id: _ended_before(stored) for stored in store.read()}

    def __len__(self) -> int:
        """Return the number of those that have not ended."""
        return sum(not entry.latest.status.ended for entry in self._entries.values())

    def goes_on(self, adapter_id: str) -> bool:
        """Return whether there is such a long adaptation, and it has not ended."""
        entry = self._entries.get(adapter_id)
        return entry is not None and not entry.latest.status.ended

    def check_room(self, tenant: str, seconds: float) -> None:
        """Raise `QueueFullError` where so much work has no room."""
        self._backlog.check(tenant, seconds)

    async def begin(
        self,
        spec: AdaptationSpec,
        tenant: str,
        expected_seconds: float | None,
        on_made: Callable[[Obtained], object] = lambda _: None,
    ) -> None:
        """Begin to make the adapter of `spec` in the time of `tenant`; what is begun goes on.

        Its status is on disk then. `on_made` is called with the adapter. Raises `StoreFailedError`,
        and `QueueFullError`.
        """
        self._forget_old()
        adapter_id = spec.job.adapter_id
        entry = self._entries.get(adapter_id)
        if entry is None or entry.latest.status.ended:
            self.check_room(tenant, expected_seconds or 0.0)
            first = LongAdaptation(adapter_id, Status.QUEUED, _now(), spec.settings.steps)
            entry = self._entries[adapter_id] = _Entry(first, tenant)
            entry.task = asyncio.create_task(self._make(entry, spec, expected_seconds, on_made))
        await entry.stored.wait()
        if isinstance(entry.latest.error, StoreFailedError):
            raise entry.latest.error

    async def result(self, adapter_id: str, within_seconds: float) -> Obtained | LongAdaptation:
        """Return the adapter if it is there in time, else how far it is. Raises what ended it."""
        entry = self._entries[adapter_id]
        if entry.task is not None:
            await asyncio.wait([entry.task], timeout=within_seconds)
        if entry.latest.error is not None:
            raise entry.latest.error
        return entry.obtained if entry.obtained and entry.latest.status.ended else self._timed(entry.latest)

    async def progress(self, adapter_id: str, within_seconds: float = 0.0) -> LongAdaptation:
        """Return how far the adapter is, once that is final, or after `within_seconds`.

        Raises `UnknownAdapterError`.
        """
        until = time.monotonic() + within_seconds
        return [latest async for latest in self.follow(adapter_id, until)][-1]

    async def follow(self, adapter_id: str, until: float) -> AsyncIterator[LongAdaptation]:
        """Yield how far the adapter is, now and at each change, to its end.

        Also end at the time `until` of the monotonic clock. Raises `UnknownAdapterError`.
        """
        while True:
            entry = self._entries.get(adapter_id)
            changed = entry.changed if entry else None
            latest = await self._state(adapter_id, entry)
            yield latest
            left = until - time.monotonic()
            if latest.status.ended or left <= 0:
                return
            if changed is None:
                await asyncio.sleep(min(left, POLL_SECONDS))
                continue
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                return

    async def cancel(self, adapter_id: str) -> LongAdaptation:
        """End a long adaptation, and return how far it was; one that has ended stays as it is.

        Requests that wait for the same adapter keep it in the making. Raises `UnknownAdapterError`.
        """
        entry = self._entries.get(adapter_id)
        if entry is not None and entry.task is not None and not entry.task.done():
            entry.cancelled = True
            entry.task.cancel()
            await asyncio.wait([entry.task])
            return entry.latest
        return await self.progress(adapter_id)

    async def settle(self) -> None:
        """Wait until all have ended."""
        while tasks := [
            entry.task for entry in self._entries.values() if entry.task and not entry.task.done()
        ]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Drop all: they have failed then, since the server ends."""
        for entry in self._entries.values():
            if entry.task is not None:
                entry.task.cancel()
        await self.settle()

    async def _state(self, adapter_id: str, entry: _Entry | None) -> LongAdaptation:
        if entry is not None and not entry.latest.status.ended:
            return self._timed(entry.latest)
        try:
            return LongAdaptation.made((await self._adapters.get(adapter_id)).manifest)
        except UnknownAdapterError as error:
            if error.retry_after_seconds:  # it is made for a request that waits
                seconds = error.retry_after_seconds
                return LongAdaptation(adapter_id, Status.RUNNING, retry_after_seconds=seconds)
            if entry is None or entry.obtained is not None:  # the adapter was deleted since
                raise
            return entry.latest

    def _timed(self, latest: LongAdaptation) -> LongAdaptation:
        if latest.status.ended:
            return latest
        return replace(latest, retry_after_seconds=self._adapters.seconds_until(latest.adapter_id))

    async def _make(
        self,
        entry: _Entry,
        spec: AdaptationSpec,
        expected_seconds: float | None,
        on_made: Callable[[Obtained], object],
    ) -> None:
        """Make the adapter, and record what became of it. Raises nothing but `CancelledError`."""
        started, timings, ended = time.monotonic(), Timings(), Status.SUCCEEDED
        error: ServiceError | None = None
        try:
            await self._put(entry)
            entry.stored.set()
            if self._adapters.is_being_made(entry.latest.adapter_id):
                entry.set(replace(entry.latest, status=Status.RUNNING))
            jobs = AdaptationJobs(self._executor, entry.tenant, spec)
            make = partial(make_adapter, jobs, self._metrics, timings, partial(self._on_progress, entry))
            with self._backlog.reserve(entry.tenant, expected_seconds or 0.0):
                async with asyncio.timeout(self._deadline_seconds) as deadline:
                    adapter, cache = await self._adapters.obtain(
                        entry.latest.adapter_id, make, lambda: False, expected_seconds
                    )
            refines_to = await self._refining.begin(spec, entry.tenant)
            timings.total_seconds = time.monotonic() - started
            entry.obtained = Obtained(adapter, cache, timings, refines_to=refines_to)
            on_made(entry.obtained)
        except asyncio.CancelledError:
            ended = Status.CANCELLED if entry.cancelled else Status.FAILED
            error = (
                AdaptationCancelledError("a client cancelled the adaptation")
                if entry.cancelled
                else AdaptationLostError("the server ended before the adapter was made")
            )
        except TimeoutError as late:
            if not deadline.expired():
                ended, error = Status.FAILED, from_exception(late)
            else:
                ended = Status.EXPIRED
                limit = f"{self._deadline_seconds:g} s (setting long_deadline_seconds)"
                error = DeadlineExceededError(f"the adapter was not made in {limit}")
        except Exception as failure:
            ended, error = Status.FAILED, from_exception(failure)
            if error is not failure and error.status >= 500:
                log.exception("the long adaptation %s failed", entry.latest.adapter_id)
        await self._end(entry, ended, error)

    async def _end(self, entry: _Entry, status: Status, error: ServiceError | None) -> None:
        latest = replace(entry.latest, status=status, finished=_now(), error=error)
        try:
            if status is Status.SUCCEEDED:  # the adapter itself says so from now on
                await asyncio.to_thread(self._store.delete, latest.adapter_id)
            elif not isinstance(error, StoreFailedError):
                await asyncio.to_thread(self._store.put, _stored(latest))
        except (OSError, StoreError):
            log.exception("the status of %s could not be stored", latest.adapter_id)
        entry.set(latest)
        entry.stored.set()
        self._metrics.long_adaptations.labels(status).inc()

    async def _put(self, entry: _Entry) -> None:
        try:
            await asyncio.to_thread(self._store.put, _stored(entry.latest))
        except (OSError, StoreError) as error:
            log.exception("the status of %s could not be stored", entry.latest.adapter_id)
            message = "the status of the adaptation could not be stored, so it is not begun"
            raise store_failure(error, message) from error

    def _on_progress(self, entry: _Entry, losses: Losses) -> None:
        if entry.latest.status is Status.QUEUED or len(losses) != len(entry.latest.losses):
            entry.set(replace(entry.latest, status=Status.RUNNING, losses=tuple(losses)))

    def _forget_old(self) -> None:
        """Forget those that ended long ago, or too many ago; not those that are there as adapters."""
        ended = sorted(
            (entry.latest.finished or "", id)
            for id, entry in self._entries.items()
            if entry.latest.status.ended
        )
        oldest = (datetime.now(UTC) - self._keep).isoformat()
        for number, (finished, id) in enumerate(ended):
            if finished < oldest or number < len(ended) - MOST_ENDED:
                del self._entries[id]
                self._store.delete(id)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _stored(latest: LongAdaptation) -> StoredStatus:
    error = latest.error
    return StoredStatus(
        latest.adapter_id,
        latest.status,
        latest.created or _now(),
        latest.steps,
        latest.finished,
        error.code if error else None,
        error.message if error else None,
        error.param if error else None,
    )


def _ended_before(stored: StoredStatus) -> _Entry:
    """Return what a process before this one had begun: how it ended, or that it was lost."""
    status, error = Status(stored.status), None
    if status.ended:
        error = ServiceError(stored.message or "", stored.param)
        error.code = stored.code or error.code  # type: ignore[misc]
    else:
        status = Status.FAILED
        error = AdaptationLostError("the server was restarted before the adapter was made: send it again")
    latest = LongAdaptation(
        stored.adapter_id, status, stored.created, stored.steps, (), stored.finished or _now(), error
    )
    entry = _Entry(latest)
    entry.stored.set()
    return entry
