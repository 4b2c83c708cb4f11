"""The engine: takes request records, has the model work done by an executor, and answers with decisions.

One road for a request: admission (validated and tokenised once), the adapter, the gate opened, the job, the decided predictions,
the gate closed. What leaves the engine is decided; surfaces and the command line only render.

The engine owns the server's state (starting, ready, draining), the bound on requests at a time, and their deadline.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from service.engine.adapter_cache import AdapterCache
from service.engine.adapter_records import adapter_of, check_adapter
from service.engine.admission import (
    AdmittedQueries,
    OptionRule,
    admit_adapt,
    admit_diagnosis,
    admit_queries,
    check_model,
)
from service.engine.answers import Answered, Diagnosed, Obtained, Timings
from service.engine.diagnose import diagnose
from service.engine.flights import Flights
from service.engine.fold_jobs import FoldJobs
from service.engine.progress import ProgressFeed
from service.engine.registry import AdapterRegistry
from service.engine.requests import AdaptRequest, CacheOutcome, DiagnoseRequest, PredictRequest
from service.errors import (
    DeadlineExceededError,
    DrainingError,
    InvalidRequestError,
    LoadFailedError,
    QueueFullError,
    ServiceError,
    StartingError,
    WorkerLostError,
)
from service.executors.contract import (
    EVERYBODY,
    Executor,
    Partial,
    PredictJob,
    ServedModel,
    Timed,
    WorkerStatus,
)
from service.gating.confidence import confidence_of
from service.gating.decisions import DecidedPrediction, decide
from service.gating.keeper import GateKeeper
from service.gating.records import CalibrateRequest, CalibrationView, FeedbackOutcome, OpenGate
from service.gating.rules import missing_calibration
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from abmll.assurance.diagnostics import Diagnosis
    from abmll.prediction.run import Prediction
    from model_store.adapters.manifest import AdapterManifest
    from model_store.adapters.store import AdapterStore, StoredAdapter
    from service.engine.fitting import Fitting

log = logging.getLogger(__name__)


class State(StrEnum):
    """Life of the engine: from starting to ready or failed; from starting or ready to draining."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass
class _Ticket:
    """One admitted request: the model it is for, its clock, whose it is, and its adapter once that is known."""

    served: ServedModel
    timings: Timings
    tenant: str
    deadline: asyncio.Timeout
    feed: ProgressFeed | None
    adapter_id: str | None = None

    def seconds_left(self) -> float:
        """Until the deadline."""
        return (self.deadline.when() or math.inf) - asyncio.get_running_loop().time()


class Engine:
    """Used from one event loop. `start` once, then `create_adapter` and `predict` from any task; `close` at the end."""

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        store: AdapterStore,
        gates: GateKeeper,
        metrics: Metrics,
    ) -> None:
        self._settings, self._executor, self._gates, self._metrics = settings, executor, gates, metrics
        memory = AdapterCache(settings.adapter_memory_bytes, metrics)
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
            fitting = await asyncio.to_thread(admit_adapt, request, ticket.served, self._settings)
            adapter, cache = await self._obtain(fitting, ticket)
            return Obtained(adapter, cache, ticket.timings)

    async def predict(
        self, request: PredictRequest, *, tenant: str = EVERYBODY, feed: ProgressFeed | None = None
    ) -> Answered:
        """Decided predictions for `request`, after making its adapter where that is needed. Raises as `create_adapter`.

        `feed` is one of `following`, and is told of what is known meanwhile. Where the adapter's calibration is needed, raises
        what `GateKeeper.open` and `close` raise too.
        """
        answered = await self._predict(request, tenant, feed)
        for row in answered.predictions:
            self._metrics.record_decision(row.confidence.value, row.decision, row.abstain_reason)
        return answered

    async def _predict(
        self, request: PredictRequest, tenant: str, feed: ProgressFeed | None = None
    ) -> Answered:
        async with self._ticket(tenant, feed) as ticket:
            check_model(request.model, ticket.served)
            if isinstance(request.adapter, AdaptRequest):
                if request.gate.needs_calibration:
                    message = "it is an adapter that is calibrated: name it by its id"
                    raise InvalidRequestError(message, "adapter_id")
                gate = OpenGate(request.gate.thresholds)
                fitting = await asyncio.to_thread(admit_adapt, request.adapter, ticket.served, self._settings)
                rule, own = OptionRule.of(fitting.support), bool(fitting.folds)
                asked = await self._admit(request, ticket, rule, own_temperature=own)
                adapter, cache = await self._obtain(fitting, ticket)
            else:
                adapter, cache = await self._registry.get(request.adapter), CacheOutcome.HIT
                ticket.adapter_id = request.adapter
                manifest = adapter.manifest
                check_adapter(manifest, ticket.served)
                gate = await self._gates.open(request.gate, manifest, request.settings)
                rule, own = OptionRule.of(manifest.support.examples), manifest.held_out is not None
                asked = await self._admit(request, ticket, rule, own_temperature=own)
            obtained = Obtained(adapter, cache, ticket.timings)
            if feed is not None:
                feed.obtain(obtained)
            decided = await self._answer(adapter, asked, gate, ticket)
            closed = await self._gates.close(gate, asked.queries, asked.settings, decided)
            return Answered(adapter, cache, ticket.timings, closed, gate.grant)

    async def calibrate(self, request: CalibrateRequest, *, tenant: str = EVERYBODY) -> CalibrationView:
        """Predict labelled examples and take in how they came out.

        Examples that are in the support, and those that are counted already, are left out with a warning. Raises `ServiceError`.
        """
        manifest = (await self._registry.get(request.adapter_id)).manifest
        kept, warnings = await self._gates.admit(request, manifest)
        queries = tuple(example.query for example in kept)
        work = PredictRequest(request.adapter_id, queries, request.settings, truncate=request.truncate)
        try:
            answered = await self._predict(work, tenant)
        except ServiceError as error:  # to the prediction, the examples are inputs
            if error.param is None or not error.param.startswith("inputs"):
                raise
            raise error.at("examples" + error.param.removeprefix("inputs")) from error
        async with self._registry.existing(request.adapter_id):  # its calibration must not outlive it
            view = await self._gates.add(request, manifest, kept, answered.predictions)
        return replace(view, warnings=tuple(warnings))

    async def calibration(self, adapter_id: str) -> CalibrationView:
        """The adapter's calibration. Raises `UnknownAdapterError`, and `CalibrationMissingError`."""
        await self._registry.get(adapter_id)
        return await self._gates.view(adapter_id)

    async def delete_calibration(self, adapter_id: str) -> None:
        """Forget the adapter's calibration and its feedback. Raises as `calibration`."""
        await self._registry.get(adapter_id)
        if not await self._gates.forget(adapter_id):
            raise missing_calibration(adapter_id)

    async def feedback(self, adapter_id: str, labels: Sequence[tuple[str, str]]) -> FeedbackOutcome:
        """Take in labels of logged predictions, as (prediction id, label). Raises as `GateKeeper.feedback`."""
        await self._registry.get(adapter_id)
        return await self._gates.feedback(adapter_id, labels)

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
    def following(self) -> Iterator[ProgressFeed]:
        """For one `predict` whose answer is told while it is made: it counts as in flight until the context ends.

        Raises `QueueFullError`, and as `check_ready`.
        """
        self.check_ready()
        self._enter()
        try:
            yield ProgressFeed()
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
        """Forget the adapter for good, and its calibration first, which must not outlive it. Raises `UnknownAdapterError`."""
        await self._registry.delete(adapter_id, self._gates.forget)

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
    async def _ticket(self, tenant: str, feed: ProgressFeed | None = None) -> AsyncIterator[_Ticket]:
        """Admit one request, before anything is computed for it, and hold it to its deadline; with a `feed` it has its place."""
        served = self.check_ready()
        if feed is None:
            self._enter()
        started = time.monotonic()
        deadline = asyncio.timeout(self._settings.deadline_seconds)
        ticket = _Ticket(served, Timings(), tenant, deadline, feed)
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
            if feed is None:
                self._leave()

    async def _admit(
        self, request: PredictRequest, ticket: _Ticket, rule: OptionRule, *, own_temperature: bool
    ) -> AdmittedQueries:
        admitted = await asyncio.to_thread(
            admit_queries, request, ticket.served, self._settings, rule, own_temperature=own_temperature
        )
        if ticket.feed is not None:
            ticket.feed.admit()
        return admitted

    async def _answer(
        self, adapter: StoredAdapter, asked: AdmittedQueries, gate: OpenGate, ticket: _Ticket
    ) -> list[DecidedPrediction]:
        """Have the queries answered with the adapter, and decide."""

        def decided(index: int, prediction: Prediction) -> DecidedPrediction:
            confidence = confidence_of(prediction.predictive, asked.confidence_kinds[index])
            return decide(prediction, confidence, gate.thresholds)

        job = PredictJob(adapter.manifest.id, asked.prompts, asked.settings)
        with self._registry.lease(adapter):
            done = await self._executor.predict(
                job,
                adapter.posterior,
                tenant=ticket.tenant,
                deadline=ticket.seconds_left(),
                on_progress=None if ticket.feed is None else _refine(ticket.feed, decided),
            )
        ticket.timings.queue_seconds += done.queue_seconds
        ticket.timings.predict_seconds = done.run_seconds
        self._record_predict(done)
        return [decided(index, prediction) for index, prediction in enumerate(done.value)]

    async def _obtain(self, fitting: Fitting, ticket: _Ticket) -> tuple[StoredAdapter, CacheOutcome]:
        job, folds = fitting.job, len(fitting.folds)
        ticket.adapter_id = job.adapter_id
        feed = ticket.feed
        on_progress = None if feed is None else partial(feed.adapt, steps=job.settings.steps)

        async def make() -> StoredAdapter:
            # Without a deadline: who joins may have more time left. The registry cancels it when nobody waits.
            jobs = FoldJobs(self._executor, ticket.tenant, fitting)
            held_out = None
            if folds:
                done, held_out = await jobs.calibrated(on_progress)
            else:
                done = await jobs.adapt(job, on_progress)
            self._metrics.queue_seconds.labels("adapt").observe(done.queue_seconds)
            self._metrics.adapt_seconds.observe(jobs.spent.seconds)
            self._metrics.adapt_steps.inc(job.settings.steps * (1 + folds))
            self._metrics.tokens.labels("support").inc(done.value.support_tokens)
            ticket.timings.queue_seconds += done.queue_seconds
            ticket.timings.adapt_seconds = jobs.spent.seconds
            return adapter_of(fitting, done.value, held_out)

        adapter, cache = await self._registry.obtain(job.adapter_id, make, ticket.deadline.expired)
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


def _refine(
    feed: ProgressFeed, decided: Callable[[int, Prediction], DecidedPrediction]
) -> Callable[[Partial], None]:
    """What passes partial predictions on to `feed`, decided."""

    def refine(partial: Partial) -> None:
        rows = enumerate(partial)
        feed.refine([None if row is None else decided(index, row) for index, row in rows])

    return refine
