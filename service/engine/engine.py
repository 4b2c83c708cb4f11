"""The engine: takes request records, has an executor do the model work, and returns decisions.

Each request passes the same steps: the gate is resolved, the request is checked and tokenised once,
its adapter is found or made, its job is done, the gate decides, and the predictions are logged
where the gate needs it. Surfaces and the command line only render what the engine returns.

The engine owns the state of the server; `Traffic` counts its requests and enforces their deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from model_store.adapters.statuses import StatusStore
from service.engine.adapter_cache import AdapterCache
from service.engine.adapter_records import check_adapter
from service.engine.admission import admit_adapt, admit_diagnosis
from service.engine.answering import Answering, named_twice
from service.engine.answers import Answered, Decided, Diagnosed, Obtained
from service.engine.backlog import Backlog
from service.engine.decisions import (
    admit_questions,
    by_input,
    decided_by_question,
    learned,
    placed_in_examples,
    questions_named,
)
from service.engine.diagnose import diagnose, price_to_diagnose
from service.engine.estimates import Estimates, Size
from service.engine.flights import Flights
from service.engine.long_adaptations import LongAdaptation, LongAdaptations
from service.engine.names import Names
from service.engine.pricing import DryRun, price_of
from service.engine.progress import ProgressFeed
from service.engine.refining import Refining
from service.engine.registry import AdapterRegistry
from service.engine.requests import (
    AdaptRequest,
    CacheOutcome,
    DecideRequest,
    DiagnoseRequest,
    PredictRequest,
)
from service.engine.specs import AdaptationSpec
from service.engine.traffic import RequestContext, Traffic
from service.errors import (
    DrainingError,
    LoadFailedError,
    ServiceError,
    StartingError,
    WorkerLostError,
)
from service.executors.contract import (
    DEFAULT_TENANT,
    Executor,
    ServedModel,
    WorkerStatus,
)
from service.gating.keeper import GateKeeper
from service.gating.records import CalibrateRequest, CalibrationView, FeedbackOutcome, Label
from service.gating.rules import missing_calibration
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from abmll.assurance.diagnostics import Diagnosis
    from model_store.adapters.manifest import AdapterManifest
    from model_store.adapters.names import NameStore
    from model_store.adapters.store import AdapterStore, StoredAdapter
    from service.gating.questions import WantedQuestion

log = logging.getLogger(__name__)


class State(StrEnum):
    """State of the engine: from starting to ready or failed, from starting or ready to draining."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


class Engine:
    """Serves requests. Used from one event loop.

    Call `start` once, then the others from any task, and `close` at the end.
    """

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        store: AdapterStore,
        names: NameStore,
        gates: GateKeeper,
        metrics: Metrics,
    ) -> None:
        self._settings, self._executor, self._gates, self._metrics = settings, executor, gates, metrics
        memory = AdapterCache(settings.adapter_memory_bytes, metrics)
        self._registry = AdapterRegistry(store, memory, settings.cancel_grace_seconds)
        self._names = Names(names, self._registry, settings.max_names)
        self._refining = Refining(self._registry, self._names, executor, metrics)
        self._long = LongAdaptations(
            StatusStore(settings.statuses_dir),
            self._registry,
            self._refining,
            executor,
            metrics,
            settings.long_deadline_seconds,
            settings.status_seconds,
            Backlog(
                settings.long_deadline_seconds * settings.workers,
                settings.workers,
                "long_deadline_seconds",
                metrics.waiting_work_seconds.labels("long").set,
            ),
        )
        self._diagnoses: Flights[Diagnosis] = Flights("diagnosis", settings.cancel_grace_seconds)
        self._served: ServedModel | None = None
        self._state = State.STARTING
        backlog = Backlog(
            settings.queue_seconds * settings.workers,
            settings.workers,
            "queue_seconds",
            metrics.waiting_work_seconds.labels("request").set,
        )
        self._estimates = Estimates()
        self._traffic = Traffic(settings.queue_limit, backlog, self._background, metrics)
        self._answering = Answering(
            lambda: self._settings,
            executor,
            self._registry,
            self._names,
            gates,
            self._refining,
            self._estimates,
            metrics,
        )

    @property
    def state(self) -> State:
        """Return the state."""
        return self._state

    @property
    def served(self) -> ServedModel:
        """Return the loaded model, also while draining.

        Raises `StartingError` before it is loaded, `LoadFailedError` if loading failed.
        """
        if self._state is State.FAILED:
            raise LoadFailedError("the model could not be loaded; the server's log says why")
        if self._served is None:
            raise StartingError("the model is loading")
        return self._served

    @property
    def names(self) -> Names:
        """Return the owner of the adapters' names."""
        return self._names

    @property
    def in_flight(self) -> int:
        """Return the number of requests that wait or run."""
        return len(self._traffic)

    async def start(self) -> None:
        """Load the model, and accept requests from then on. Raises what loading raises."""
        try:
            self._served = await self._executor.start()
        except Exception:
            self._state = State.FAILED
            raise
        if self._state is State.STARTING:
            self._state = State.READY
            self._metrics.ready.set(1)

    def check_ready(self) -> ServedModel:
        """Return the loaded model. Raises `StartingError`, `LoadFailedError` or `DrainingError`."""
        if self._state is State.DRAINING:
            raise DrainingError("the server is shutting down")
        return self.served

    def check_serving(self) -> ServedModel:
        """Return as `check_ready`, and raise `WorkerLostError` as well, while no worker is up."""
        served = self.check_ready()
        if not any(worker.state == "up" for worker in self.workers()):
            raise WorkerLostError("no worker is up")
        return served

    def workers(self) -> Sequence[WorkerStatus]:
        """Return the status of every worker, in a fixed order."""
        return self._executor.workers()

    async def restart_workers(self) -> None:
        """Start every worker again, one after the other; no job is lost. See `Executor.restart`."""
        await self._executor.restart()
        log.info("every worker was started again")

    def drain(self) -> None:
        """Accept no more requests; those in flight go on."""
        if self._state is not State.FAILED:
            self._state = State.DRAINING
        self._metrics.ready.set(0)

    async def idle(self) -> None:
        """Wait until no request and no adaptation is in flight."""
        while len(self._traffic):
            await asyncio.sleep(0.02)
        await self._diagnoses.settle()
        await self._long.settle()
        await self._refining.settle()
        await self._registry.settle()

    async def close(self) -> None:
        """Drain, end the workers, and release the store."""
        self.drain()
        await self._long.close()
        await self._refining.close()
        await self._executor.close()
        await self._diagnoses.close()
        await self._registry.close()

    async def create_adapter(self, request: AdaptRequest, *, tenant: str = DEFAULT_TENANT) -> Obtained:
        """Return the adapter of `request`, which is on disk by then.

        Raises `ServiceError`: refused by admission, busy, not ready, too late, or not stored.
        """
        async with self._context(tenant, asked=request) as context:
            spec = await self._answering.admit_adapt(request, context.served)
            await self._answering.price(request, context, spec, None)
            return await self._obtain(spec, context)

    async def _obtain(self, spec: AdaptationSpec, context: RequestContext) -> Obtained:
        adapter, cache = await self._answering.obtain(spec, context)
        refines_to = await self._refining.begin(spec, context.tenant)
        return Obtained(adapter, cache, context.timings, refines_to=refines_to)

    async def begin_adapter(
        self, request: AdaptRequest, wait_seconds: float = 0.0, *, tenant: str = DEFAULT_TENANT
    ) -> Obtained | LongAdaptation:
        """Begin to make the adapter of `request`, which goes on without the caller.

        Return the adapter if it is there within `wait_seconds`, else how far it is. Raises as
        `create_adapter`; the deadline is `long_deadline_seconds`.
        """
        async with self._context(tenant) as context:
            self._long.check_room(tenant, self._estimated(request, context.served))
            spec = await self._answering.admit_adapt(request, context.served)
            deadline = self._settings.long_deadline_seconds
            price = await self._answering.check_price(context.served, spec, None, deadline)
            context.adapter_id = adapter_id = spec.job.adapter_id
            if await self._registry.has(adapter_id):
                return await self._obtain(spec, context)
            await self._long.begin(spec, tenant, price.adapt_seconds if price else None)
        return await self._long.result(adapter_id, wait_seconds)

    @property
    def long_adaptations(self) -> LongAdaptations:
        """Return the owner of the adaptations that no client waits for."""
        return self._long

    async def predict(
        self, request: PredictRequest, *, tenant: str = DEFAULT_TENANT, feed: ProgressFeed | None = None
    ) -> Answered:
        """Return decided predictions for `request`, after making its adapter where that is needed.

        `feed`, which comes from `progress_feed`, gets the progress meanwhile. Raises as
        `create_adapter`; where the adapter's calibration is needed, also as `GateKeeper.resolve`
        and `log_predictions`.
        """
        with _wrong_field(request):
            answered = await self._predict(request, tenant, feed)
        self._answering.record(answered.predictions)
        return answered

    async def _predict(
        self, request: PredictRequest, tenant: str, feed: ProgressFeed | None = None
    ) -> Answered:
        async with self._context(tenant, feed, request) as context:
            done = await self._answering.carry_out(request, context)
            assert done.adapter is not None  # only decisions come without one
            return Answered(
                done.adapter,
                done.cache,
                context.timings,
                done.rows,
                done.gates[0].calibrated if done.gates else None,
                done.spec.warnings,
                context.model,
                refines_to=context.refines_to,
            )

    async def decide(self, request: DecideRequest, *, tenant: str = DEFAULT_TENANT) -> Decided:
        """Return decided answers to every question about every input.

        The adapter is made first, where the request brings one to make. Raises as `predict`; errors
        name the input or the question of the request.
        """
        async with self._context(tenant, asked=request) as context:
            adapter_id, called = await self.resolve_model(request.model or context.served.base.id)
            if adapter_id is not None:
                request = _named(request, adapter_id, called)
            work = await asyncio.to_thread(admit_questions, request, self._settings)
            with questions_named(request):
                done = await self._answering.carry_out(work, context, most_queries=len(work.queries))
            adapter, rows = done.adapter, decided_by_question(request, done.rows)
            self._answering.record(rows)
            return Decided(
                rows=by_input(rows, len(request.questions)),
                learned=learned(request.questions, adapter.manifest.support.examples if adapter else ()),
                calibrated_gates=[gate.calibrated for gate in done.gates[: len(request.questions)]],
                adapter_id=adapter.manifest.id if adapter else None,
                model=called if adapter is None or adapter_id else adapter.manifest.id,
                cache=done.cache,
                timings=context.timings,
                tokens=sum(prompt.tokens for prompt in done.spec.prompts),
                warnings=done.spec.warnings,
                refines_to=context.refines_to,
            )

    async def calibrate(self, request: CalibrateRequest, *, tenant: str = DEFAULT_TENANT) -> CalibrationView:
        """Predict labelled examples, and add their outcomes to the adapter's calibration.

        Examples that are in the support or in the calibration already are left out with a warning.
        Raises `ServiceError`.
        """
        manifest = (await self._registry.get(request.adapter_id)).manifest
        admitted = await self._gates.admit(request, manifest)
        queries = tuple(example.query for example in admitted.examples)
        work = PredictRequest(request.adapter_id, queries, request.settings, truncate=request.truncate)
        try:
            answered = await self._predict(work, tenant)
        except ServiceError as error:
            raise placed_in_examples(error, admitted.places) from error
        async with self._registry.existing(request.adapter_id):  # its calibration must not outlive it
            return await self._gates.add(request, manifest, admitted, answered.predictions)

    async def calibrations(
        self, adapter_id: str, question: WantedQuestion = None
    ) -> Sequence[CalibrationView]:
        """Return the calibrations of the adapter's questions, or of one of them.

        Raises `UnknownAdapterError`, `CalibrationMissingError` where there is none, and
        `InvalidRequestError` for an unknown question.
        """
        manifest = (await self._registry.get(adapter_id)).manifest
        async with self._registry.existing(adapter_id):  # not while it is deleted, which takes two steps
            return await self._gates.views(manifest, question)

    async def delete_calibration(self, adapter_id: str, question: WantedQuestion = None) -> None:
        """Delete the calibration of a question and its feedback, or without `question` all of them.

        Raises as `calibrations`, and `InvalidRequestError` for an unknown question.
        """
        manifest = (await self._registry.get(adapter_id)).manifest
        async with self._registry.existing(adapter_id):
            if question is None:
                deleted = await self._gates.forget(adapter_id)
            else:
                deleted = await self._gates.forget_question(manifest, question)
            if not deleted:
                raise missing_calibration(adapter_id)

    async def feedback(self, adapter_id: str, labels: Sequence[tuple[str, Label]]) -> FeedbackOutcome:
        """Add labels of logged predictions, each a pair of prediction id and label.

        Raises `UnknownAdapterError`, and as `GateKeeper.feedback`.
        """
        manifest = (await self._registry.get(adapter_id)).manifest
        return await self._gates.feedback(manifest, labels)

    async def diagnose(self, request: DiagnoseRequest, *, tenant: str = DEFAULT_TENANT) -> Diagnosed:
        """Return the diagnosis of an adapter, which is stored with it by then.

        If the adapter has a diagnosis by an equal request, that is returned. Equal requests at the
        same time wait for one diagnosis. Raises `ServiceError` as `create_adapter`,
        `UnknownAdapterError`, and `UndiagnosableError`.
        """
        async with self._context(tenant) as context:
            adapter = await self._registry.get(request.adapter_id)
            context.adapter_id = request.adapter_id
            check_adapter(adapter.manifest, context.served)
            support = adapter.manifest.support.examples
            folds = await asyncio.to_thread(admit_diagnosis, request, support, self._settings)
            stored = adapter.diagnosis
            if stored and (stored.asked_folds, stored.samples) == (request.folds, request.samples):
                return Diagnosed(adapter, CacheOutcome.HIT, context.timings, stored)

            async def make() -> Diagnosis:
                found, spent = await diagnose(
                    adapter, request, folds, context.served, self._executor, context.tenant,
                    self._settings.deadline_seconds,
                )  # fmt: skip
                context.timings.adapt_seconds = spent.adapt_seconds
                context.timings.predict_seconds = spent.predict_seconds
                await self._registry.put_diagnosis(request.adapter_id, found)
                self._metrics.diagnoses.labels(found.verdict).inc()
                return found

            diagnosis, joined = await self._diagnoses.join(request, make, context.deadline.expired)
            cache = CacheOutcome.JOINED if joined else CacheOutcome.MISS
            return Diagnosed(adapter, cache, context.timings, diagnosis)

    async def dry_run(self, request: AdaptRequest | PredictRequest) -> DryRun:
        """Return what `request` means and would take. Raises what it would be refused with."""
        deadline = self._settings.deadline_seconds
        async with self._context(DEFAULT_TENANT) as context:
            if isinstance(request, AdaptRequest):
                new: AdaptationSpec | None = await self._answering.admit_adapt(request, context.served)
                prediction = None
            else:
                with _wrong_field(request):
                    source, _, prediction = await self._answering.admit(request, context)
                new = source if isinstance(source, AdaptationSpec) else None
            price = await asyncio.to_thread(price_of, context.served, new, prediction)
            known = new is not None and await self._registry.knows(new.job.adapter_id)
            return DryRun.of(new, prediction, price, deadline, made_already=known)

    async def dry_run_diagnosis(self, request: AdaptRequest, asked: DiagnoseRequest) -> DryRun:
        """Return what a diagnosis of the adapter of `request` means and would take, without making it.

        `asked.adapter_id` does not matter. Raises what either would be refused with.
        """
        async with self._context(DEFAULT_TENANT) as context:
            spec = await asyncio.to_thread(admit_adapt, request, context.served, self._settings)
            folds = await asyncio.to_thread(admit_diagnosis, asked, request.support, self._settings)
            price = await asyncio.to_thread(price_to_diagnose, spec, folds, asked.samples)
            return DryRun.of(spec, None, price, self._settings.deadline_seconds)

    @contextmanager
    def progress_feed(self) -> Iterator[ProgressFeed]:
        """Open a feed for one `predict`, which counts as in flight until the context ends.

        Raises `QueueFullError`, and as `check_ready`.
        """
        self.check_ready()
        self._traffic.enter()
        try:
            yield ProgressFeed()
        finally:
            self._traffic.leave()

    async def adapter(self, adapter_id: str) -> StoredAdapter:
        """Return the adapter of this id. Raises `UnknownAdapterError`."""
        return await self._registry.get(adapter_id)

    async def adapters(self, after: str | None, limit: int) -> tuple[list[AdapterManifest], bool]:
        """Return the manifests of at most `limit` adapters, and whether there are more.

        They are ordered by id and come after the id `after`.
        """
        return await self._registry.page(after, limit)

    async def pin(self, adapter_id: str) -> None:
        """Hold the adapter in memory.

        Raises `UnknownAdapterError`, and `LimitExceededError` where it does not fit.
        """
        await self._registry.pin(adapter_id)

    async def unpin(self, adapter_id: str) -> None:
        """Allow the adapter to be dropped from memory again. Raises `UnknownAdapterError`."""
        await self._registry.unpin(adapter_id)

    async def delete_adapter(self, adapter_id: str) -> None:
        """Delete the adapter, and its calibration first, since that must not outlive it.

        Raises `UnknownAdapterError`, and `AdapterNamedError` where a name points to it.
        """

        async def first(adapter_id: str) -> None:
            self._names.check_unnamed(adapter_id)
            await self._gates.forget(adapter_id)

        await self._registry.delete(adapter_id, first)

    async def resolve_model(self, model: str) -> tuple[str | None, str]:
        """Return the adapter that `model` stands for, and what the answer calls it.

        `model` is a name of the base model (then there is no adapter), the id of an adapter, a
        name, or a version of one (`tickets@3`); what was named is called by its version. Raises
        `UnknownModelError`, also where the adapter was deleted.
        """
        return await self._answering.resolve_model(model, self.served.base.id)

    def _context(
        self,
        tenant: str,
        feed: ProgressFeed | None = None,
        asked: AdaptRequest | PredictRequest | DecideRequest | None = None,
    ) -> AbstractAsyncContextManager[RequestContext]:
        """Open a request, whose work is `asked` for: see `Traffic.request`. Raises as `check_ready`."""
        served = self.check_ready()
        seconds = self._estimated(asked, served) if asked is not None else 0.0
        return self._traffic.request(served, tenant, feed, self._settings.deadline_seconds, seconds)

    def _estimated(self, asked: AdaptRequest | PredictRequest | DecideRequest, served: ServedModel) -> float:
        return self._estimates.seconds(Size.of(asked, served), served)

    def _background(self) -> int:
        """Return how much work goes on, counting what is made in the background beside requests."""
        flights = self._registry.in_flight + len(self._diagnoses)
        return max(flights, len(self._traffic) + len(self._refining) + len(self._long))


@contextmanager
def _wrong_field(request: PredictRequest) -> Iterator[None]:
    """Have errors about the adapter of `request` name the field that names it."""
    try:
        yield
    except ServiceError as error:
        if request.adapter is not None or error.param != "adapter_id":
            raise
        raise error.at("model") from error


def _named(request: DecideRequest, adapter_id: str, called: str) -> DecideRequest:
    """Return the request with the adapter that its model names. Raises where it has another."""
    if request.adapter is not None:
        raise named_twice(called)
    return replace(request, adapter=adapter_id)
