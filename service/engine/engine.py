"""The engine: takes request records, has an executor do the model work, and returns decisions.

Each request passes the same steps: the gate is resolved, the request is checked and tokenised once,
its adapter is found or made, its job is done, the gate decides, and the predictions are logged
where the gate needs it. Surfaces and the command line only render what the engine returns.

`Life` owns the state of the server; `Traffic` counts its requests and enforces their deadline.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING

from model_store.adapters.statuses import StatusStore
from service.engine.answering import Answering, wrong_field
from service.engine.answers import Answered, Decided, Diagnosed, Obtained
from service.engine.backlog import Backlog
from service.engine.calibrating import Calibrating
from service.engine.deciding import decide
from service.engine.diagnosing import Diagnosing
from service.engine.dry_runs import dry_run, dry_run_diagnosis
from service.engine.estimates import Estimates, Size
from service.engine.expiry import Expiry
from service.engine.life import Life, State
from service.engine.long_adaptations import LongAdaptation, LongAdaptations
from service.engine.names import Names
from service.engine.pricing import DryRun
from service.engine.progress import ProgressFeed
from service.engine.readapting import Readapted, readapt
from service.engine.requests import (
    AdaptRequest,
    CacheOutcome,
    DecideRequest,
    DiagnoseRequest,
    PredictRequest,
)
from service.engine.specs import AdaptationSpec
from service.engine.tenants import Belongings, Tenants, TenantStores
from service.engine.traffic import RequestContext, Traffic
from service.errors import QueueFullError, WorkerLostError
from service.executors.contract import Executor, ServedModel, WorkerStatus, in_background
from service.gating.keeper import GateKeeper
from service.metrics import Metrics
from service.principals.audit import Action, AuditLog
from service.principals.parts import has_room, part
from service.principals.quotas import Meter
from service.principals.records import LOCAL, Principal
from service.settings import Settings

if TYPE_CHECKING:
    from model_store.adapters.contract import Adapters
    from model_store.adapters.manifest import AdapterManifest
    from model_store.adapters.names import NameStore
    from model_store.adapters.store import StoredAdapter

log = logging.getLogger(__name__)


class Engine:
    """Serves requests of one principal: at first the local one, who has the default tenant.

    Call `start` once, then the others from any task, and `close` at the end. `of` returns the
    engine for another principal, with the same workers, limits and life. Used from one event loop.
    """

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        store: Adapters,
        names: NameStore,
        gates: GateKeeper,
        metrics: Metrics,
        open_stores: Callable[[str], TenantStores] | None = None,
    ) -> None:
        """Serve the default tenant from these stores, and others from those of `open_stores`."""
        self._settings, self._executor, self._metrics = settings, executor, metrics
        self._life, self._audit = Life(metrics), AuditLog(settings.audit_log)
        own = TenantStores(store, names, gates, StatusStore(settings.statuses_dir))
        self._tenants = Tenants(own, open_stores, settings, executor, metrics)
        self._expiry = (
            Expiry(self._tenants, settings.ttl_seconds, self._audit) if settings.ttl_seconds else None
        )
        self._backlog = Backlog(
            settings.queue_seconds * settings.workers,
            settings.workers,
            "queue_seconds",
            metrics.waiting_work_seconds.labels("request").set,
        )
        self._estimates = Estimates()
        self._traffic = Traffic(settings.queue_limit, self._backlog, self._background, metrics)
        self._bind(LOCAL, self._tenants.default)

    async def of(self, principal: Principal) -> Engine:
        """Return the engine as `principal` may use it: all that it finds and makes is its tenant's.

        Raises what opening the tenant's stores raises.
        """
        own, other = await self._tenants.of(principal.tenant), copy.copy(self)
        own.registry.limits = principal.limits
        other._bind(principal, own)
        return other

    def _bind(self, principal: Principal, own: Belongings) -> None:
        self._principal, self._own = principal, own
        self._registry, self._names = own.registry, own.names
        self._refining, self._long = own.refining, own.long
        self._answering = Answering(
            lambda: self._settings,
            self._executor,
            own,
            principal,
            self._audit,
            self._estimates,
            self._metrics,
            self._check_background,
        )
        self._diagnosing = Diagnosing(
            lambda: self._settings,
            self._executor,
            own,
            self._answering,
            self._backlog,
            self._estimates,
            self._metrics,
        )

    @property
    def state(self) -> State:
        """Return the state."""
        return self._life.state

    @property
    def served(self) -> ServedModel:
        """Return the loaded model. See `Life.served`."""
        return self._life.served

    @property
    def names(self) -> Names:
        """Return the owner of the names of the tenant's adapters."""
        return self._names

    @property
    def meter(self) -> Meter:
        """Return the owner of what the tenant has used of its limits."""
        return self._own.meter

    def audit(self, action: Action, id: str, detail: str = "") -> None:
        """Write into the audit log that the principal did `action` to what has this id."""
        self._audit.write(self._principal, action, id, detail)

    @property
    def in_flight(self) -> int:
        """Return the number of requests that wait or run."""
        return len(self._traffic)

    async def start(self) -> None:
        """Load the model, and accept requests from then on. Raises what loading raises."""
        if await self._life.start(self._executor) and self._expiry is not None:
            self._expiry.start()

    def check_ready(self) -> ServedModel:
        """Return the loaded model. Raises `StartingError`, `LoadFailedError` or `DrainingError`."""
        return self._life.check_ready()

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
        self._life.drain()

    async def idle(self) -> None:
        """Wait until no request and no adaptation is in flight."""
        while len(self._traffic):
            await asyncio.sleep(0.02)
        for own in self._tenants.all():
            await own.diagnoses.settle()
            await own.long.settle()
            await own.refining.settle()
            await own.registry.settle()

    async def close(self) -> None:
        """Drain, end the workers, and release the stores."""
        self.drain()
        if self._expiry is not None:
            await self._expiry.close()
        for own in self._tenants.all():
            await own.long.close()
            await own.refining.close()
        await self._executor.close()
        for own in self._tenants.all():
            await own.diagnoses.close()
            await own.registry.close()
        self._audit.close()

    async def create_adapter(self, request: AdaptRequest) -> Obtained:
        """Return the adapter of `request`, which is on disk by then.

        Raises `ServiceError`: refused by admission, busy, not ready, too late, or not stored.
        """
        async with self._context(asked=request) as context:
            spec = await self._answering.admit_adapt(request, context.served)
            await self._answering.price(request, context, spec, None)
            return await self._obtain(spec, context)

    async def _obtain(self, spec: AdaptationSpec, context: RequestContext) -> Obtained:
        adapter, cache = await self._answering.obtain(spec, context)
        refines_to = await self._answering.refine(spec, context)
        return Obtained(adapter, cache, context.timings, refines_to=refines_to)

    async def begin_adapter(
        self, request: AdaptRequest, wait_seconds: float = 0.0
    ) -> Obtained | LongAdaptation:
        """Begin to make the adapter of `request`, which goes on without the caller.

        Return the adapter if it is there within `wait_seconds`, else how far it is. Raises as
        `create_adapter`; the deadline is `long_deadline_seconds`.
        """
        async with self._context() as context:
            self._long.check_room(context.tenant, self._estimated(request, context.served))
            spec = await self._answering.admit_adapt(request, context.served)
            deadline = self._settings.long_deadline_seconds, "long_deadline_seconds"
            price = await self._answering.check_price(context.served, spec, None, deadline)
            context.adapter_id = adapter_id = spec.job.adapter_id
            if price is not None:
                self._long.check_room(context.tenant, price.adapt_seconds)
                await self._answering.charge_price(price, spec)
            if await self._registry.has(adapter_id):
                return await self._obtain(spec, context)
            # What is being made for others costs nothing, and when it will be there is known.
            seconds = price.adapt_seconds or None if price is not None else None
            if not self._long.goes_on(adapter_id):
                self._check_background()
            await self._long.begin(spec, context.tenant, seconds, self._note_made)
        return await self._long.result(adapter_id, wait_seconds)

    def _note_made(self, made: Obtained) -> None:
        if made.cache is CacheOutcome.MISS:
            self.audit("adapt", made.adapter.manifest.id)
        if made.refines_to is not None:
            self.audit("adapt", made.refines_to, "refine")

    @property
    def long_adaptations(self) -> LongAdaptations:
        """Return the owner of the tenant's adaptations that no client waits for."""
        return self._long

    async def predict(
        self, request: PredictRequest, *, feed: ProgressFeed | None = None, background: bool = False
    ) -> Answered:
        """Return decided predictions for `request`, after making its adapter where that is needed.

        `feed`, which comes from `progress_feed`, gets the progress meanwhile. In the `background`,
        it has no deadline, counts as no request, and takes what capacity others leave. Raises as
        `create_adapter`; where the adapter's calibration is needed, also as `GateKeeper.resolve`
        and `log_predictions`.
        """
        with wrong_field(request):
            answered = await self._predict(request, feed, background=background)
        self._answering.record(answered.predictions)
        return answered

    async def _predict(
        self, request: PredictRequest, feed: ProgressFeed | None = None, *, background: bool = False
    ) -> Answered:
        async with self._context(feed, request, background=background) as context:
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

    async def decide(self, request: DecideRequest, *, background: bool = False) -> Decided:
        """Return decided answers to every question about every input.

        The adapter is made first, where the request brings one to make. `background` is as in
        `predict`. Raises as `predict`; errors name the input or the question of the request.
        """
        async with self._context(asked=request, background=background) as context:
            return await decide(request, context, self._answering, self._settings)

    @property
    def calibrations(self) -> Calibrating:
        """Return what calibrates the gates of the tenant's adapters."""
        return Calibrating(self._own, self._predict, self.audit)

    async def diagnose(self, request: DiagnoseRequest) -> Diagnosed:
        """Return the diagnosis of an adapter, which is stored with it by then.

        If the adapter has a diagnosis by an equal request, that is returned. Equal requests at the
        same time wait for one diagnosis. Raises `ServiceError` as `create_adapter`,
        `UnknownAdapterError`, and `UndiagnosableError`.
        """
        async with self._context() as context:
            return await self._diagnosing.diagnose(request, context)

    async def readapt(self, adapter_id: str, *, dry_run: bool = False, move_names: bool = True) -> Readapted:
        """Make an adapter of the same examples with the default posterior, and move the names to
        it.

        It is on disk before a name moves, so after an interruption the same call goes on. A dry run
        makes and moves nothing. Raises as `create_adapter`, `UnknownAdapterError` and
        `TextsNotStoredError`.
        """
        async with self._context() as context:
            context.adapter_id = adapter_id
            done = await readapt(
                adapter_id,
                self._own,
                self._answering,
                context,
                dry_run_deadline=self._settings.deadline_seconds if dry_run else None,
                move_names=move_names,
            )
        if not dry_run:
            for name in done.names:
                self.audit("name", name, "readapt")
        return done

    async def dry_run(self, request: AdaptRequest | PredictRequest | DecideRequest) -> DryRun:
        """Return what `request` means and would take. Raises what it would be refused with."""
        async with self._context() as context:
            return await dry_run(request, context, self._own, self._answering, self._settings)

    async def dry_run_diagnosis(self, request: AdaptRequest, asked: DiagnoseRequest) -> DryRun:
        """Return what a diagnosis of the adapter of `request` means and would take, without making
        it.

        `asked.adapter_id` does not matter. Raises what either would be refused with.
        """
        async with self._context() as context:
            return await dry_run_diagnosis(request, asked, context, self._settings)

    @contextmanager
    def progress_feed(self) -> Iterator[ProgressFeed]:
        """Open a feed for one `predict`, which counts as in flight until the context ends.

        Raises `QueueFullError`, and as `check_ready`.
        """
        self.check_ready()
        tenant = self._principal.shares_time_as
        self._traffic.enter(tenant)
        try:
            yield ProgressFeed()
        finally:
            self._traffic.leave(tenant)

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
        """Delete the adapter, as `Belongings.delete_adapter`."""
        await self._own.delete_adapter(adapter_id)
        self.audit("delete", adapter_id)

    async def resolve_model(self, model: str) -> tuple[str | None, str]:
        """Return the adapter that `model` stands for, and what the answer calls it.

        `model` is a name of the base model (then there is no adapter), the id of an adapter, a
        name, or a version of one (`tickets@3`); what was named is called by its version. Raises
        `UnknownModelError`, also where the adapter was deleted.
        """
        return await self._answering.resolve_model(model, self.served.base.id)

    def _context(
        self,
        feed: ProgressFeed | None = None,
        asked: AdaptRequest | PredictRequest | DecideRequest | None = None,
        *,
        background: bool = False,
    ) -> AbstractAsyncContextManager[RequestContext]:
        """Open a request, whose work is `asked` for: see `Traffic.request`. Raises as
        `check_ready`.
        """
        served, share = self.check_ready(), self._principal.shares_time_as
        if background:
            return self._traffic.request(served, in_background(share), feed, None)
        seconds = self._estimated(asked, served) if asked is not None else 0.0
        return self._traffic.request(served, share, feed, self._settings.deadline_seconds, seconds)

    def _estimated(self, asked: AdaptRequest | PredictRequest | DecideRequest, served: ServedModel) -> float:
        return self._estimates.seconds(Size.of(asked, served), served)

    def _background(self) -> int:
        """Return how much work goes on, counting what is made in the background beside requests."""
        everyone = self._tenants.all()
        flights = sum(own.in_flight for own in everyone)
        return max(flights, len(self._traffic) + sum(own.in_background for own in everyone))

    def _check_background(self) -> None:
        """Raise `QueueFullError` where no more may go on without a client.

        That is half of `queue_limit` in all, so that requests always come through; and with keys a
        tenant has at most as much of it as is left free.
        """
        total = 1 + sum(own.in_background for own in self._tenants.all())
        most, shared = max(1, self._settings.queue_limit // 2), self._settings.keys_file is not None
        if not has_room(1 + self._own.in_background, total, most, shared=shared):
            there = part(most, "queue_limit, of which this is half", shared=shared)
            raise QueueFullError(f"too many adapters are made without a client that waits: {there}", None, 60)
