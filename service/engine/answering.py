"""The road of a prediction: its adapter is found or made, its job is done, and the gates decide."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from service.engine import admission
from service.engine.adaptation_jobs import AdaptationJobs
from service.engine.adapter_records import check_adapter
from service.engine.answers import Obtained
from service.engine.estimates import Estimates, Size
from service.engine.making import make_adapter
from service.engine.pricing import Price, price_of
from service.engine.requests import AdaptRequest, CacheOutcome, PredictRequest
from service.engine.specs import AdaptationSpec, PredictionSpec
from service.engine.tenants import Belongings
from service.engine.traffic import RequestContext
from service.errors import InvalidRequestError, ServiceError, UnknownAdapterError, UnknownModelError
from service.executors.contract import GLOBAL, Executor, ServedModel, Timed
from service.gating.confidence import confidence_of
from service.gating.decisions import DecidedPrediction, decide
from service.gating.records import ResolvedGate
from service.metrics import Metrics
from service.principals.audit import AuditLog
from service.principals.quotas import check_room
from service.principals.records import UNLIMITED, Principal, Scope
from service.settings import Settings

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction
    from abmll.text.tasks import Example
    from model_store.adapters.store import StoredAdapter


@dataclass(frozen=True)
class CarriedOut:
    """What became of a request: decided predictions by query, with their gates and their spec.

    `adapter` is None where the global posterior answered.
    """

    adapter: StoredAdapter | None
    cache: CacheOutcome
    rows: Sequence[DecidedPrediction]
    gates: Sequence[ResolvedGate]
    spec: PredictionSpec


@dataclass(frozen=True)
class Answering:
    """Answers requests of a principal with what its tenant owns. It has no state of its own.

    `settings` is a function, since those of an engine may be replaced.
    """

    _settings: Callable[[], Settings]
    _executor: Executor
    _own: Belongings
    _principal: Principal
    _audit: AuditLog
    _estimates: Estimates
    _metrics: Metrics
    _check_background: Callable[[], None]

    async def carry_out(
        self, request: PredictRequest, context: RequestContext, most_queries: int | None = None
    ) -> CarriedOut:
        """Do the work of a request, and return its predictions, which the gates decided.

        The limit on inputs does not hold for `most_queries` of them.
        """
        feed = context.feed
        source, gates, spec = await self.admit(request, context, most_queries)
        new = source if isinstance(source, AdaptationSpec) else None
        await self.price(request, context, new, spec)
        if feed is not None:
            feed.set_admitted()
        adapter, cache = (
            await self.obtain(source, context)
            if isinstance(source, AdaptationSpec)
            else (source, CacheOutcome.HIT)
        )
        if feed is not None and adapter is not None:
            feed.set_obtained(Obtained(adapter, cache, context.timings))
        decided = await self._answer(adapter, spec, gates, context)
        if new is not None:  # after the answer, which is not to wait for it
            context.refines_to = await self.refine(new, context)
        logged = await self._own.gates.log_predictions(gates, spec.queries, spec.settings, decided)
        return CarriedOut(adapter, cache, logged, gates, spec)

    async def resolve_model(self, model: str, base_id: str) -> tuple[str | None, str]:
        """See `Engine.resolve_model`."""
        if model == base_id or model in self._settings().aliases:
            return None, base_id
        adapter_id, called = await self._own.names.resolve(model, base_id)
        try:
            await self._own.registry.get(adapter_id)
        except UnknownAdapterError as error:
            message = (
                error.message
                if called == model == adapter_id or error.retry_after_seconds
                else (f"{called} was adapter {adapter_id}, which was deleted")
            )
            raise UnknownModelError(message, "model", error.retry_after_seconds) from error
        return adapter_id, called

    async def admit_adapt(self, request: AdaptRequest, served: ServedModel) -> AdaptationSpec:
        """Return what is made: of a request to refine, the refined adapter where that is there.

        Raises `ForbiddenError` where the principal may not make adapters.
        """
        self._principal.require(Scope.ADAPT)
        spec = await asyncio.to_thread(admission.admit_adapt, request, served, self._settings())
        keep_texts = self._settings().store_support == "text"
        spec = spec.owned(self._own.id_key, keep_texts=keep_texts)
        refined = spec.refined
        return refined if refined and await self._own.registry.has(refined.job.adapter_id) else spec

    async def admit(
        self, request: PredictRequest, context: RequestContext, most_queries: int | None = None
    ) -> tuple[AdaptationSpec | StoredAdapter | None, Sequence[ResolvedGate], PredictionSpec]:
        """Return the adapter, or what it is to be made of, the gate of each query, and the queries."""
        served = context.served
        source: AdaptationSpec | StoredAdapter | None
        support: Sequence[Example]
        adapter = await self._source(request, context)
        if not isinstance(adapter, str):
            if request.gate.needs_calibration:
                message = "a calibrated gate needs adapter_id: only a stored adapter has a calibration"
                raise InvalidRequestError(message, "adapter_id")
            gates = [ResolvedGate(request.gate.thresholds)] * len(request.queries)
            if adapter is None:
                source, support, own = None, (), False
            else:
                source = await self.admit_adapt(adapter, served)
                support, own = source.support, bool(source.folds)
        else:
            source = await self._own.registry.get(adapter)
            context.adapter_id = adapter
            manifest = source.manifest
            context.served = served = check_adapter(manifest, served)
            gates = await self._own.gates.resolve(request.gate, manifest, request.settings, request.queries)
            support, own = manifest.support.examples, manifest.held_out is not None
        spec = await asyncio.to_thread(
            admission.admit_predict,
            request,
            served,
            self._settings(),
            support,
            own_temperature=own,
            most_queries=most_queries,
        )
        return source, gates, spec

    async def _source(self, request: PredictRequest, context: RequestContext) -> str | AdaptRequest | None:
        """Return the adapter of `request`, or the request to make one, which `model` may name.

        None stands for the global posterior.
        """
        if request.model is None:
            return request.adapter
        adapter_id, called = await self.resolve_model(request.model, context.served.base.id)
        if request.adapter is not None:
            if adapter_id is not None:
                raise named_twice(called)
            return request.adapter
        if adapter_id is None:
            message = f"{called!r} is the base model: name an adapter, or send examples as support"
            raise InvalidRequestError(message, "model")
        context.model = None if called == adapter_id else called
        return adapter_id

    async def price(
        self,
        request: AdaptRequest | PredictRequest,
        context: RequestContext,
        adaptation: AdaptationSpec | None,
        prediction: PredictionSpec | None,
    ) -> None:
        """Put the price of a request in place of its estimate, and count it for the tenant's
        limits.

        Raises as `check_price` and `charge_price`, and `QueueFullError` where the estimate was too
        low and there is no room.
        """
        price = await self.check_price(context.served, adaptation, prediction)
        if price is None:
            return
        if context.reservation is not None:
            self._estimates.learn(Size.of(request, context.served), price)
            context.reservation.correct(price.seconds)
        await self.charge_price(price, adaptation)

    async def check_price(
        self,
        served: ServedModel,
        adaptation: AdaptationSpec | None,
        prediction: PredictionSpec | None,
        deadline: tuple[float, str] | None = None,
    ) -> Price | None:
        """Return what is left to do of a request, if its price is known.

        An adapter that is known, or is being made, costs nothing. Raises
        `PriceExceedsDeadlineError` where an idle worker would take far longer than the `deadline`, in
        seconds and with the setting that sets it, by default a request's; and `QuotaExceededError`
        where the tenant may not have one more adapter. Raises `QueueFullError` where it would be
        refined, and nothing more may go on in the background.
        """
        price = await asyncio.to_thread(price_of, served, adaptation, prediction)
        limits, refined = self._principal.limits, adaptation.refined if adaptation is not None else None
        if refined is not None and not await self._own.registry.knows(refined.job.adapter_id):
            self._check_background()
        if adaptation is not None:
            if await self._own.registry.knows(adaptation.job.adapter_id):
                price = None if price is None else replace(price, adapt_seconds=0.0)
            elif limits != UNLIMITED:
                check_room(limits, *await self._own.registry.stored())
        if price is not None:
            price.check(*deadline or (self._settings().deadline_seconds, "deadline_seconds"))
        return price

    async def charge_price(self, price: Price, adaptation: AdaptationSpec | None) -> None:
        """Count a price for the limits of the tenant, with that of what `adaptation` is refined to.

        Raises `RateLimitedError`.
        """
        if self._principal.limits == UNLIMITED:
            return
        refined, later = adaptation.refined if adaptation is not None else None, None
        if refined is not None and not await self._own.registry.knows(refined.job.adapter_id):
            later = await asyncio.to_thread(price_of, refined.served, refined, None)
        self.charge(price.seconds + (later.seconds if later is not None else 0.0))

    def charge(self, work_seconds: float) -> None:
        """Count work for the limits of the tenant. Raises `RateLimitedError`."""
        self._own.meter.take_work(self._principal.limits, work_seconds)

    async def _answer(
        self,
        adapter: StoredAdapter | None,
        spec: PredictionSpec,
        gates: Sequence[ResolvedGate],
        context: RequestContext,
    ) -> list[DecidedPrediction]:
        """Return the predictions for the queries, each decided by its gate."""
        held = self._own.registry.lease(adapter) if adapter is not None else nullcontext()

        def decided(index: int, prediction: Prediction) -> DecidedPrediction:
            confidence = confidence_of(prediction.predictive, spec.confidence_kinds[index])
            return decide(prediction, confidence, gates[index].thresholds)

        async with held:
            done = await self._executor.predict(
                spec.job(adapter.manifest.id if adapter is not None else GLOBAL),
                adapter.posterior if adapter is not None else None,
                tenant=context.tenant,
                deadline=context.seconds_left(),
                on_progress=None if context.feed is None else context.feed.deciding(decided),
            )
        context.timings.queue_seconds += done.queue_seconds
        context.timings.predict_seconds = done.run_seconds
        self._record_predict(done)
        return [decided(index, prediction) for index, prediction in enumerate(done.value)]

    async def obtain(
        self, spec: AdaptationSpec, context: RequestContext
    ) -> tuple[StoredAdapter, CacheOutcome]:
        """Return the adapter of `spec`, found or made, and how it was obtained."""
        context.adapter_id = adapter_id = spec.job.adapter_id
        feed = context.feed
        on_progress = None if feed is None else partial(feed.set_losses, steps=spec.settings.steps)
        jobs = AdaptationJobs(self._executor, context.tenant, spec)
        make = partial(make_adapter, jobs, self._metrics, context.timings, on_progress)
        adapter, cache = await self._own.registry.obtain(adapter_id, make, context.deadline.expired)
        self._metrics.cache.labels(cache).inc()
        if cache is CacheOutcome.MISS:
            self._audit.write(self._principal, "adapt", adapter_id)
        return adapter, cache

    async def refine(self, spec: AdaptationSpec, context: RequestContext) -> str | None:
        """Begin to make what `spec` is refined to in the background, and return its id, if
        anything.
        """
        refined_id = await self._own.refining.begin(spec, context.tenant)
        if refined_id is not None:
            self._audit.write(self._principal, "adapt", refined_id, "refine")
        return refined_id

    def record(self, rows: Sequence[DecidedPrediction]) -> None:
        """Count the decisions of a request in the metrics."""
        for row in rows:
            self._metrics.record_decision(row.confidence.value, row.decision, row.abstain_reason)

    def _record_predict(self, done: Timed[Sequence[Prediction]]) -> None:
        self._metrics.queue_seconds.labels("predict").observe(done.queue_seconds)
        self._metrics.predict_seconds.observe(done.run_seconds)
        for prediction in done.value:
            self._metrics.samples.inc(prediction.predictive.samples)
            self._metrics.tokens.labels("prompt").inc(prediction.prompt_tokens)
            self._metrics.tokens.labels("completion").inc(prediction.completion_tokens)


@contextmanager
def wrong_field(request: PredictRequest) -> Iterator[None]:
    """Have errors about the adapter of `request` name the field that names it."""
    try:
        yield
    except ServiceError as error:
        if request.adapter is not None or error.param != "adapter_id":
            raise
        raise error.at("model") from error


def named_twice(called: str) -> InvalidRequestError:
    """Return the error of a request whose model names an adapter, and that has another one."""
    message = f"{called!r} names an adapter: leave adapter_id and support out, or name the base model"
    return InvalidRequestError(message, "model")
