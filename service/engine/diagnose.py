"""Diagnoses an adapter by held-out answers, compared with those of the unadapted posterior."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from abmll.assurance import diagnostics
from abmll.assurance.folds import Fold, HeldOutAnswer
from abmll.text.demonstrations import fitting
from abmll.text.prompting import EncodedPrompt, PromptTemplate
from service.engine.adaptation_jobs import AdaptationJobs, ModelTime, together
from service.engine.adapter_records import spec_of
from service.engine.estimates import IN_CONTEXT_TOKENS
from service.engine.pricing import Price, price_of, price_of_diagnosis
from service.engine.requests import DiagnoseRequest
from service.engine.specs import AdaptationSpec
from service.executors.contract import Executor, ServedModel

if TYPE_CHECKING:
    from abmll.posterior.posteriors import TaskPosterior
    from model_store.adapters.store import StoredAdapter


async def diagnose(
    adapter: StoredAdapter,
    request: DiagnoseRequest,
    folds: Sequence[Fold],
    served: ServedModel,
    executor: Executor,
    tenant: str,
    deadline_seconds: float,
    take: Callable[[float], None],
) -> tuple[diagnostics.Diagnosis, ModelTime]:
    """Return the diagnosis of `adapter` by `folds` of its support, and the workers' time for it.

    `take` gets the price before the work begins. Raises what it and the executor raise, and
    `PriceExceedsDeadlineError`.
    """
    whole = await asyncio.to_thread(spec_of, adapter.manifest, served)
    demonstrated = await asyncio.to_thread(demonstrated_prompts, whole, folds)
    price = await asyncio.to_thread(price_of_diagnosis, whole, folds, request.samples, demonstrated)
    if price is not None:
        price.check(deadline_seconds)
        take(price.seconds)
    jobs = AdaptationJobs(executor, tenant, whole)
    (theta, prior, in_context), *by_fold = await together(
        _unadapted(jobs, folds, demonstrated), *(jobs.held_out(fold, request.samples) for fold in folds)
    )
    return await asyncio.to_thread(_conclude, adapter, request, theta, by_fold, prior, in_context), jobs.spent


def price_to_diagnose(whole: AdaptationSpec, folds: Sequence[Fold], samples: int) -> Price | None:
    """Return the price of an adapter with its diagnosis; None where the speed is not known."""
    made = price_of(whole.served, whole, None)
    price = price_of_diagnosis(whole, folds, samples, demonstrated_prompts(whole, folds))
    if made is None or price is None:
        return None
    return replace(price, adapt_seconds=price.adapt_seconds + made.adapt_seconds)


async def _unadapted(
    jobs: AdaptationJobs, folds: Sequence[Fold], demonstrated: tuple[EncodedPrompt, ...]
) -> tuple[TaskPosterior, list[HeldOutAnswer], list[HeldOutAnswer]]:
    """Return the posterior before any gradient step, and two lists of its answers.

    Both are the answers of its mean to all held-out examples: in the first without, in the second
    with demonstrations in the prompt: with the prompts `demonstrated`.
    """
    part = jobs.whole.part(folds[0].kept[:1])
    unmoved = replace(part, settings=replace(part.settings, steps=0))
    job = replace(unmoved.job, needs_values=True)
    theta = replace((await jobs.adapt(job)).value.posterior, class_examples=())
    indices = [i for fold in folds for i in fold.held_out]
    prior = await jobs.answers(job, theta, jobs.whole.prompts(indices), indices, 0)
    return theta, prior, await jobs.answers(job, theta, demonstrated, indices, 0)


def demonstrated_prompts(whole: AdaptationSpec, folds: Sequence[Fold]) -> tuple[EncodedPrompt, ...]:
    """Return a prompt for each held-out example, with demonstrations from the rest of the support.

    As many demonstrations are shown as fit. Examples of one fold have the same ones.
    """
    support, served = whole.support, whole.served
    template = PromptTemplate.from_json(served.template)
    most = min(IN_CONTEXT_TOKENS, served.encoder.max_tokens)
    return tuple(
        served.encoder.encode(
            fitting(fold.demonstrations(support, query), query, served.encoder, template, most), truncate=True
        )
        for fold in folds
        for query in fold.queries(support)
    )


def _conclude(
    adapter: StoredAdapter,
    request: DiagnoseRequest,
    theta: TaskPosterior,
    by_fold: Sequence[list[HeldOutAnswer]],
    prior: Sequence[HeldOutAnswer],
    in_context: Sequence[HeldOutAnswer],
) -> diagnostics.Diagnosis:
    from abmll.posterior.movement import movement  # noqa: PLC0415 - with torch, which the command line can do without

    return diagnostics.diagnose(
        adapter.manifest.support.examples,
        [row for rows in by_fold for row in rows],
        prior,
        in_context,
        movement(adapter.posterior.with_values(theta), theta),
        asked_folds=request.folds,
        folds=len(by_fold),
        samples=request.samples,
        questions=[typed.question for typed in adapter.manifest.support.asked],
    )
