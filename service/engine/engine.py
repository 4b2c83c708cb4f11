"""The engine: takes domain requests, has the model work done by an executor, and answers.

It owns the server's state (starting, ready, draining), the bound on requests at a time, and their deadline.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from service.engine.adapter_cache import AdapterMemory
from service.engine.adapter_records import adapter_of, check_adapter
from service.engine.admission import OptionRule, admit_adapt, admit_diagnosis, admit_queries, check_model
from service.engine.diagnose import diagnose
from service.engine.flights import Flights
from service.engine.fold_jobs import Jobs
from service.engine.identity import adapter_id
from service.engine.progress import Watch
from service.engine.registry import AdapterRegistry
from service.engine.requests import AdaptRequest, CacheOutcome, DiagnoseRequest, PredictRequest
from service.errors import (
    DeadlineExceededError,
    DrainingError,
    LoadFailedError,
    QueueFullError,
    StartingError,
    WorkerLostError,
)
from service.executors.contract import (
    EVERYBODY,
    AdaptJob,
    Executor,
    PredictJob,
    ServedModel,
    Timed,
    WorkerStatus,
)
from service.gating.confidence import (
    OWN_TEMPERATURE,
    AnyCalibrator,
    Confidence,
    Judge,
    calibrators_of,
    stop_rule,
)
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from abmll.assurance.diagnostics import Diagnosis
    from abmll.assurance.folds import Fold
    from abmll.prediction.run import Prediction
    from abmll.text.tasks import Example, Query
    from model_store.adapters.manifest import AdapterManifest
    from model_store.adapters.store import AdapterStore, StoredAdapter

log = logging.getLogger(__name__)


class State(StrEnum):
    """Life of the engine: from starting to ready or failed; from starting or ready to draining."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass
class Timings:
    """Seconds that one request spent waiting for the model, adapting and predicting, and in all."""

    queue_seconds: float = 0.0
    adapt_seconds: float = 0.0
    predict_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass(frozen=True)
class Obtained:
    """An adapter and how a request came by it."""

    adapter: StoredAdapter
    cache: CacheOutcome
    timings: Timings


@dataclass(frozen=True)
class Predicted(Obtained):
    """Predictions and their confidences, in the order of the queries; `calibrator` is the id of the one that was used."""

    predictions: Sequence[Prediction]
    confidences: Sequence[Confidence]
    calibrator: str | None = None


@dataclass(frozen=True)
class Diagnosed(Obtained):
    """A diagnosis of an adapter; `cache` says how the request came by the diagnosis."""

    diagnosis: Diagnosis


@dataclass
class _Ticket:
    """One admitted request: the model it is for, its clock, whose it is, and its adapter once that is known."""

    served: ServedModel
    timings: Timings
    tenant: str
    deadline: asyncio.Timeout
    watch: Watch | None
    adapter_id: str | None = None

    def seconds_left(self) -> float:
        """Until the deadline."""
        return (self.deadline.when() or math.inf) - asyncio.get_running_loop().time()


class Engine:
    """Used from one event loop. `start` once, then `create_adapter` and `predict` from any task; `close` at the end."""

    def __init__(self, settings: Settings, executor: Executor, store: AdapterStore, metrics: Metrics) -> None:
        self._settings, self._executor, self._metrics = settings, executor, metrics
        memory = AdapterMemory(settings.adapter_memory_bytes, metrics)
        self._registry = AdapterRegistry(store, memory, settings.cancel_grace_seconds)
        self._diagnoses: Flights[Diagnosis] = Flights("diagnosis", settings.cancel_grace_seconds)
        self._served: ServedModel | None = None
        self._state = State.STARTING
        self._in_flight = 0
        self._request_seconds = 1.0  # moving average, for Retry-After

    @property
    def state(self) -> State:
        """Where the engine is in its life."""
        return self._state

    @property
    def served(self) -> ServedModel:
        """What is loaded, also while draining. Raises `StartingError` before it is, `LoadFailedError` if it cannot be."""
        if self._state is State.FAILED:
            raise LoadFailedError("the model could not be loaded; the server's log says why")
        if self._served is None:
            raise StartingError("the model is loading")
        return self._served

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self._in_flight

    async def start(self) -> None:
        """Load the model and take requests from then on. Raises whatever loading raises."""
        try:
            self._served = await self._executor.start()
        except Exception:
            self._state = State.FAILED
            raise
        if self._state is State.STARTING:
            self._state = State.READY
            self._metrics.ready.set(1)

    def check_ready(self) -> ServedModel:
        """What is loaded. Raises `StartingError`, `LoadFailedError` or `DrainingError` where no work is taken."""
        if self._state is State.DRAINING:
            raise DrainingError("the server is shutting down")
        return self.served

    def check_serving(self) -> ServedModel:
        """As `check_ready`; raises `WorkerLostError` as well, while no worker is up."""
        served = self.check_ready()
        if not any(worker.state == "up" for worker in self.workers()):
            raise WorkerLostError("no worker is up")
        return served

    def workers(self) -> Sequence[WorkerStatus]:
        """Every worker, in a fixed order."""
        return self._executor.workers()

    def drain(self) -> None:
        """Take no new work from now on; what is in flight goes on."""
        if self._state is not State.FAILED:
            self._state = State.DRAINING
        self._metrics.ready.set(0)

    async def idle(self) -> None:
        """Wait until no request and no adaptation is in flight."""
        while self._in_flight:
            await asyncio.sleep(0.02)
        await self._diagnoses.settle()
        await self._registry.settle()

    async def close(self) -> None:
        """Drain, and let go of the workers and the store."""
        self.drain()
        await self._executor.close()
        await self._diagnoses.close()
        await self._registry.close()

    async def create_adapter(self, request: AdaptRequest, *, tenant: str = EVERYBODY) -> Obtained:
        """The adapter of `request`, kept on disk before this returns. `tenant` is whose share of the workers it uses.

        Raises `ServiceError`: refused by admission, busy, not ready, too late, or not stored.
        """
        async with self._ticket(tenant) as ticket:
            job, folds = await asyncio.to_thread(admit_adapt, request, ticket.served, self._settings)
            adapter, cache = await self._obtain(job, folds, ticket)
            return Obtained(adapter, cache, ticket.timings)

    async def predict(
        self, request: PredictRequest, *, tenant: str = EVERYBODY, watch: Watch | None = None
    ) -> Predicted:
        """Predictions for `request`, after making its adapter where that is needed. Raises as `create_adapter`.

        `watch` is one of `watching`, and is told of what is known meanwhile.
        """
        async with self._ticket(tenant, watch) as ticket:
            check_model(request.model, ticket.served)
            if isinstance(request.adapter, AdaptRequest):
                job, folds = await asyncio.to_thread(
                    admit_adapt, request.adapter, ticket.served, self._settings
                )
                queries, calibrators = await self._admit(request, ticket, job.support, own=bool(folds))
                adapter, cache = await self._obtain(job, folds, ticket)
            else:
                adapter, cache = await self._registry.get(request.adapter), CacheOutcome.HIT
                ticket.adapter_id = request.adapter
                manifest = adapter.manifest
                check_adapter(manifest, ticket.served)
                queries, calibrators = await self._admit(
                    request, ticket, manifest.support.examples, own=manifest.held_out is not None
                )
            judge = Judge.of(adapter, calibrators)
            if watch is not None:
                watch.obtain(Obtained(adapter, cache, ticket.timings), judge)
            work = PredictJob(
                adapter.manifest.id,
                adapter.posterior,
                queries,
                request.samples,
                request.seed,
                request.max_new_tokens,
                request.truncate,
                stop_rule(request.gate, calibrators) if request.samples == "auto" else None,
                request.answers_per_sample,
            )
            with self._registry.lease(adapter):
                done = await self._executor.predict(
                    work,
                    tenant=tenant,
                    deadline=ticket.seconds_left(),
                    on_progress=None if watch is None else watch.refine,
                )
            ticket.timings.queue_seconds += done.queue_seconds
            ticket.timings.predict_seconds = done.run_seconds
            self._record_predict(done)
            confidences = judge.confidences(done.value)
            return Predicted(adapter, cache, ticket.timings, done.value, confidences, judge.used(confidences))

    async def diagnose(self, request: DiagnoseRequest, *, tenant: str = EVERYBODY) -> Diagnosed:
        """The diagnosis of an adapter, kept with it before this returns.

        An equal one that is kept already is given as it is; one that is being made is joined. Raises `ServiceError` as
        `create_adapter`, `UnknownAdapterError`, and `InvalidRequestError` for an adapter that cannot be diagnosed.
        """
        async with self._ticket(tenant) as ticket:
            adapter = await self._registry.get(request.adapter_id)
            ticket.adapter_id = request.adapter_id
            check_adapter(adapter.manifest, ticket.served)
            support = adapter.manifest.support.examples
            folds = await asyncio.to_thread(admit_diagnosis, request, support, self._settings)
            kept = adapter.diagnosis
            if kept and (kept.asked_folds, kept.samples) == (request.folds, request.samples):
                return Diagnosed(adapter, CacheOutcome.HIT, ticket.timings, kept)

            async def make() -> Diagnosis:
                found, spent = await diagnose(
                    adapter, request, folds, ticket.served, self._executor, ticket.tenant
                )
                ticket.timings.adapt_seconds = spent.adapt_seconds
                ticket.timings.predict_seconds = spent.predict_seconds
                await self._registry.diagnosed(request.adapter_id, found)
                self._metrics.diagnoses.labels(found.verdict).inc()
                return found

            diagnosis, joined = await self._diagnoses.join(request, make, ticket.deadline.expired)
            cache = CacheOutcome.JOINED if joined else CacheOutcome.MISS
            return Diagnosed(adapter, cache, ticket.timings, diagnosis)

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """For one `predict` whose answer is told while it is made: it counts as in flight until the context ends.

        Raises `QueueFullError`, and as `check_ready`.
        """
        self.check_ready()
        self._enter()
        try:
            yield Watch()
        finally:
            self._leave()

    async def adapter(self, adapter_id: str) -> StoredAdapter:
        """The adapter of this id. Raises `UnknownAdapterError`."""
        return await self._registry.get(adapter_id)

    async def adapters(self, after: str | None, limit: int) -> tuple[list[AdapterManifest], bool]:
        """Manifests of at most `limit` adapters with ids beyond `after`, in order, and whether there are more."""
        return await self._registry.page(after, limit)

    async def pin(self, adapter_id: str) -> None:
        """Keep the adapter in memory. Raises `UnknownAdapterError`, and `LimitExceededError` where it does not fit."""
        await self._registry.pin(adapter_id)

    async def unpin(self, adapter_id: str) -> None:
        """Let the adapter leave memory again. Raises `UnknownAdapterError`."""
        await self._registry.unpin(adapter_id)

    async def delete_adapter(self, adapter_id: str) -> None:
        """Forget the adapter for good. Raises `UnknownAdapterError`."""
        await self._registry.delete(adapter_id)

    def _enter(self) -> None:
        """Take one of the places for requests at a time. Raises `QueueFullError`."""
        going_on = self._registry.in_flight + len(self._diagnoses)
        if max(self._in_flight, going_on) >= self._settings.queue_limit:
            raise QueueFullError("the server is busy", None, self._retry_after_seconds())
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)

    def _leave(self) -> None:
        self._in_flight -= 1
        self._metrics.in_flight.set(self._in_flight)

    @asynccontextmanager
    async def _ticket(self, tenant: str, watch: Watch | None = None) -> AsyncIterator[_Ticket]:
        """Admit one request, before anything is computed for it, and hold it to its deadline; with a `watch` it has its place."""
        served = self.check_ready()
        if watch is None:
            self._enter()
        started = time.monotonic()
        deadline = asyncio.timeout(self._settings.deadline_seconds)
        ticket = _Ticket(served, Timings(), tenant, deadline, watch)
        try:
            async with deadline:
                yield ticket
        except (
            TimeoutError,
            DeadlineExceededError,
        ) as error:  # the executor, which has the deadline too, may see it first
            if isinstance(error, TimeoutError) and not deadline.expired():
                raise
            message = f"not done in {self._settings.deadline_seconds:g} s; an adaptation goes on for a while, so try again"
            raise DeadlineExceededError(
                message, None, self._retry_after_seconds(), ticket.adapter_id
            ) from error
        finally:  # before the caller sees the result, which holds these timings
            ticket.timings.total_seconds = time.monotonic() - started
            self._request_seconds += 0.1 * (ticket.timings.total_seconds - self._request_seconds)
            if watch is None:
                self._leave()

    async def _admit(
        self, request: PredictRequest, ticket: _Ticket, support: Sequence[Example], *, own: bool
    ) -> tuple[tuple[Query, ...], list[AnyCalibrator | None]]:
        rule = OptionRule.of(support)
        queries = await asyncio.to_thread(admit_queries, request, ticket.served, self._settings, rule)
        calibrator = OWN_TEMPERATURE if own else ticket.served.calibrator
        calibrators = calibrators_of(request.confidence, calibrator, request.samples, queries)
        if ticket.watch is not None:
            ticket.watch.admit()
        return queries, calibrators

    async def _obtain(
        self, job: AdaptJob, folds: Sequence[Fold], ticket: _Ticket
    ) -> tuple[StoredAdapter, CacheOutcome]:
        identity = ticket.adapter_id = adapter_id(job, ticket.served, len(folds))
        watch = ticket.watch
        on_progress = None if watch is None else partial(watch.adapt, steps=job.settings.steps)

        async def make() -> StoredAdapter:
            # Without a deadline: who joins may have more time left. The registry cancels it when nobody waits.
            jobs = Jobs(self._executor, ticket.served, ticket.tenant, job)
            held_out = None
            if folds:
                done, held_out = await jobs.calibrated(folds, on_progress)
            else:
                done = await jobs.adapt(job, on_progress)
            self._metrics.queue_seconds.labels("adapt").observe(done.queue_seconds)
            self._metrics.adapt_seconds.observe(jobs.spent.seconds)
            self._metrics.adapt_steps.inc(job.settings.steps * (1 + len(folds)))
            self._metrics.tokens.labels("support").inc(done.value.support_tokens)
            ticket.timings.queue_seconds += done.queue_seconds
            ticket.timings.adapt_seconds = jobs.spent.seconds
            return adapter_of(identity, job, ticket.served, done.value, len(folds), held_out)

        adapter, cache = await self._registry.obtain(identity, make, ticket.deadline.expired)
        self._metrics.cache.labels(cache).inc()
        return adapter, cache

    def _record_predict(self, done: Timed[Sequence[Prediction]]) -> None:
        self._metrics.queue_seconds.labels("predict").observe(done.queue_seconds)
        self._metrics.predict_seconds.observe(done.run_seconds)
        for prediction in done.value:
            self._metrics.samples.inc(prediction.predictive.samples)
            self._metrics.tokens.labels("prompt").inc(prediction.prompt_tokens)
            self._metrics.tokens.labels("completion").inc(prediction.completion_tokens)

    def _retry_after_seconds(self) -> int:
        """About when the requests in flight will be done, from 1 to 60 s, spread so that clients do not return together."""
        expected = self._in_flight * self._request_seconds * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        return math.ceil(min(60.0, max(1.0, expected)))
