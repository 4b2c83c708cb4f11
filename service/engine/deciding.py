"""Answers to typed questions: each question is about every input, by one adapter."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from service.engine.answering import Answering, named_twice
from service.engine.answers import Decided
from service.engine.decisions import (
    admit_questions,
    by_input,
    decided_by_question,
    learned,
    questions_named,
)
from service.engine.requests import DecideRequest, PredictRequest
from service.engine.traffic import RequestContext
from service.settings import Settings


async def work_of(
    request: DecideRequest, context: RequestContext, answering: Answering, settings: Settings
) -> tuple[PredictRequest, str | None, str]:
    """Return the predictions for the questions, the adapter that the model names, and its name.

    Raises `UnknownModelError`, as `admit_questions`, and where the request has another adapter.
    """
    base_id = context.served.base.id
    adapter_id, called = await answering.resolve_model(request.model or base_id, base_id)
    if adapter_id is not None:
        if request.adapter is not None:
            raise named_twice(called)
        request = replace(request, adapter=adapter_id)
    return await asyncio.to_thread(admit_questions, request, settings), adapter_id, called


async def decide(
    request: DecideRequest, context: RequestContext, answering: Answering, settings: Settings
) -> Decided:
    """See `Engine.decide`."""
    work, adapter_id, called = await work_of(request, context, answering, settings)
    with questions_named(request):
        done = await answering.carry_out(work, context, most_queries=len(work.queries))
    adapter, rows = done.adapter, decided_by_question(request, done.rows)
    answering.record(rows)
    return Decided(
        rows=by_input(rows, len(request.questions)),
        learned=learned(request.questions, adapter.manifest.support.examples if adapter else ()),
        calibrated_gates=[gate.calibrated for gate in done.gates[: len(request.questions)]],
        adapter_id=adapter.manifest.id if adapter else None,
        model=called if adapter is None or adapter_id else adapter.manifest.id,
        cache=done.cache,
        timings=context.timings,
        tokens_by_input=list(
            map(sum, by_input([p.tokens for p in done.spec.prompts], len(request.questions)))
        ),
        warnings=done.spec.warnings,
        refines_to=context.refines_to,
    )
