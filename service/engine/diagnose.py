"""Diagnosing an adapter: adapters of parts of its support and the posterior before any step, on the same examples."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from abmll.assurance import diagnostics
from abmll.assurance.folds import Fold, HeldOutAnswer
from abmll.text.demonstrations import fitting
from abmll.text.prompting import EncodedPrompt, PromptTemplate
from service.engine.adapter_records import fitting_of
from service.engine.fold_jobs import FoldJobs, Spent, together
from service.engine.requests import DiagnoseRequest
from service.executors.contract import Executor, ServedModel

if TYPE_CHECKING:
    from abmll.posterior.posteriors import TaskPosterior
    from model_store.adapters.store import StoredAdapter

# Of a prompt with demonstrations, as in the evaluation of in-context learning.
IN_CONTEXT_TOKENS = 2048


async def diagnose(
    adapter: StoredAdapter,
    request: DiagnoseRequest,
    folds: Sequence[Fold],
    served: ServedModel,
    executor: Executor,
    tenant: str,
) -> tuple[diagnostics.Diagnosis, Spent]:
    """The diagnosis of `adapter` by `folds` of its support, and what it took. Raises what the executor raises."""
    whole = await asyncio.to_thread(fitting_of, adapter.manifest, served)
    jobs = FoldJobs(executor, tenant, whole)
    (theta, prior, in_context), *by_fold = await together(
        _unadapted(jobs, folds), *(jobs.held_out(fold, request.samples) for fold in folds)
    )
    return await asyncio.to_thread(_conclude, adapter, request, theta, by_fold, prior, in_context), jobs.spent


async def _unadapted(
    jobs: FoldJobs, folds: Sequence[Fold]
) -> tuple[TaskPosterior, list[HeldOutAnswer], list[HeldOutAnswer]]:
    """The posterior before any step; what its mean answers for all held-out examples, as they are and behind demonstrations."""
    part = jobs.whole.part(folds[0].kept[:1])
    job = replace(part, settings=replace(part.settings, steps=0)).job
    theta = (await jobs.adapt(job)).value.posterior
    indices = [i for fold in folds for i in fold.held_out]
    demonstrated = await asyncio.to_thread(_demonstrated, jobs, folds)
    prior = await jobs.ask(job, theta, jobs.whole.prompts(indices), indices, 0)
    return theta, prior, await jobs.ask(job, theta, demonstrated, indices, 0)


def _demonstrated(jobs: FoldJobs, folds: Sequence[Fold]) -> tuple[EncodedPrompt, ...]:
    """Each held-out example behind those that its fold adapts to, as many as fit. Examples of a fold share their prompt."""
    support, served = jobs.whole.support, jobs.whole.served
    template = PromptTemplate.from_json(served.template)
    most = min(IN_CONTEXT_TOKENS, served.encoder.max_tokens)
    return tuple(
        served.encoder.encode(
            fitting(fold.support(support), query, served.encoder, template, most), truncate=True
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
        movement(adapter.posterior, theta),
        asked_folds=request.folds,
        folds=len(by_fold),
        samples=request.samples,
    )
