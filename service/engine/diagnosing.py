"""Diagnoses of adapters: each is found, joined or made, and stored with its adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.engine.adapter_records import check_adapter
from service.engine.admission import admit_diagnosis
from service.engine.answering import Answering
from service.engine.answers import Diagnosed
from service.engine.backlog import Backlog
from service.engine.diagnose import diagnose
from service.engine.estimates import Estimates, Size
from service.engine.requests import CacheOutcome, DiagnoseRequest
from service.engine.tenants import Belongings
from service.engine.traffic import RequestContext
from service.errors import UndiagnosableError
from service.executors.contract import Executor
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abmll.assurance.diagnostics import Diagnosis
    from abmll.assurance.folds import Fold
    from model_store.adapters.store import StoredAdapter


@dataclass(frozen=True)
class Diagnosing:
    """Diagnoses the adapters of a tenant. It has no state of its own.

    `settings` is a function, since those of an engine may be replaced.
    """

    _settings: Callable[[], Settings]
    _executor: Executor
    _own: Belongings
    _answering: Answering
    _backlog: Backlog
    _estimates: Estimates
    _metrics: Metrics

    async def diagnose(self, request: DiagnoseRequest, context: RequestContext) -> Diagnosed:
        """See `Engine.diagnose`."""
        adapter = await self._own.registry.get(request.adapter_id)
        context.adapter_id = request.adapter_id
        context.served = check_adapter(adapter.manifest, context.served)
        support = adapter.manifest.support
        if not support.texts:
            raise UndiagnosableError(
                "a diagnosis learns from the examples again, and this adapter was stored without them "
                "(setting store_support): make it again where that is `text`",
                "adapter_id",
            )
        folds = await asyncio.to_thread(admit_diagnosis, request, support.examples, self._settings())
        stored = adapter.diagnosis
        if stored and (stored.asked_folds, stored.samples) == (request.folds, request.samples):
            return Diagnosed(adapter, CacheOutcome.HIT, context.timings, stored)

        async def make() -> Diagnosis:
            return await self._make(request, adapter, folds, context)

        diagnosis, joined = await self._own.diagnoses.join(request, make, context.deadline.expired)
        cache = CacheOutcome.JOINED if joined else CacheOutcome.MISS
        return Diagnosed(adapter, cache, context.timings, diagnosis)

    async def _make(
        self, request: DiagnoseRequest, adapter: StoredAdapter, folds: Sequence[Fold], context: RequestContext
    ) -> Diagnosis:
        size = Size.of_diagnosis(adapter.manifest, len(folds), request.samples, context.served)
        seconds = self._estimates.seconds(size, context.served)
        # As long as it goes on, also without the request that began it.
        with self._backlog.reserve(context.tenant, seconds) as reservation:

            def take(price: float) -> None:
                reservation.correct(price)
                self._answering.charge(price)

            found, spent = await diagnose(
                adapter, request, folds, context.served, self._executor, context.tenant,
                self._settings().deadline_seconds, take,
            )  # fmt: skip
        context.timings.adapt_seconds = spent.adapt_seconds
        context.timings.predict_seconds = spent.predict_seconds
        await self._own.registry.put_diagnosis(request.adapter_id, found)
        self._metrics.diagnoses.labels(found.verdict).inc()
        return found
