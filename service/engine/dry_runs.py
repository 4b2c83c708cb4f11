"""What a request means and would take, without doing it."""

from __future__ import annotations

import asyncio

from service.engine.admission import admit_adapt, admit_diagnosis
from service.engine.answering import Answering, wrong_field
from service.engine.deciding import work_of
from service.engine.decisions import questions_named
from service.engine.diagnose import price_to_diagnose
from service.engine.pricing import DryRun, price_of
from service.engine.requests import AdaptRequest, DecideRequest, DiagnoseRequest, PredictRequest
from service.engine.specs import AdaptationSpec
from service.engine.tenants import Belongings
from service.engine.traffic import RequestContext
from service.settings import Settings


async def dry_run(
    request: AdaptRequest | PredictRequest | DecideRequest,
    context: RequestContext,
    own: Belongings,
    answering: Answering,
    settings: Settings,
) -> DryRun:
    """See `Engine.dry_run`."""
    prediction = None
    if isinstance(request, AdaptRequest):
        new: AdaptationSpec | None = await answering.admit_adapt(request, context.served)
    else:
        if isinstance(request, DecideRequest):
            work, _, _ = await work_of(request, context, answering, settings)
            with questions_named(request):
                source, _, prediction = await answering.admit(work, context, len(work.queries))
        else:
            with wrong_field(request):
                source, _, prediction = await answering.admit(request, context)
        new = source if isinstance(source, AdaptationSpec) else None
    price = await asyncio.to_thread(price_of, context.served, new, prediction)
    known = new is not None and await own.registry.knows(new.job.adapter_id)
    return DryRun.of(new, prediction, price, settings.deadline_seconds, made_already=known)


async def dry_run_diagnosis(
    request: AdaptRequest, asked: DiagnoseRequest, context: RequestContext, settings: Settings
) -> DryRun:
    """See `Engine.dry_run_diagnosis`."""
    spec = await asyncio.to_thread(admit_adapt, request, context.served, settings)
    folds = await asyncio.to_thread(admit_diagnosis, asked, request.support, settings)
    price = await asyncio.to_thread(price_to_diagnose, spec, folds, asked.samples)
    return DryRun.of(spec, None, price, settings.deadline_seconds)
