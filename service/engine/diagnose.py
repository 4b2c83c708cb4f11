"""Diagnosing an adapter: its folds as ordinary jobs, side by side, so that they share batches with other work."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from abmll import diagnostics
from abmll.demonstrations import fitting
from abmll.folds import Fold, Scored, scored
from abmll.prompting import PromptTemplate
from abmll.tasks import Query
from service.engine.identity import adapter_id
from service.engine.records import DiagnoseRequest
from service.executors.contract import AdaptJob, Executor, PredictJob, ServedModel

if TYPE_CHECKING:
    from abmll.posterior import TaskPosterior
    from model_store.adapters import AdapterManifest, StoredAdapter

# Of a prompt with demonstrations, as in the evaluation of in-context learning.
IN_CONTEXT_TOKENS = 2048


@dataclass
class Spent:
    """Seconds of the model's time, over all jobs."""

    adapt_seconds: float = 0.0
    predict_seconds: float = 0.0


@dataclass(frozen=True)
class _Jobs:
    """How one diagnosis has its jobs carried out."""

    executor: Executor
    served: ServedModel
    tenant: str
    manifest: AdapterManifest
    spent: Spent

    def adapt_job(self, fold: Fold) -> AdaptJob:
        """The adapter's own job on a part of its support."""
        manifest = self.manifest
        names = {field.name for field in fields(self.served.defaults)}
        settings = replace(
            self.served.defaults,
            **{name: value for name, value in manifest.settings.items() if name in names},
        )
        return AdaptJob(
            fold.support(manifest.support.examples), settings, manifest.seed, manifest.settings["truncate"]
        )

    async def adapt(self, job: AdaptJob) -> TaskPosterior:
        done = await self.executor.adapt(job, tenant=self.tenant)
        self.spent.adapt_seconds += done.run_seconds
        return done.value.posterior

    async def ask(
        self,
        job: AdaptJob,
        posterior: TaskPosterior,
        queries: tuple[Query, ...],
        indices: Sequence[int],
        samples: int,
    ) -> list[Scored]:
        """The answers to `queries`, which are those of the support examples at `indices`, of the posterior that `job` made."""
        work = PredictJob(
            adapter_id(job, self.served), posterior, queries, samples, self.manifest.seed, 1, truncate=True
        )
        done = await self.executor.predict(work, tenant=self.tenant)
        self.spent.predict_seconds += done.run_seconds
        return scored(self.manifest.support.examples, indices, done.value)


async def diagnose(
    adapter: StoredAdapter,
    request: DiagnoseRequest,
    folds: Sequence[Fold],
    served: ServedModel,
    executor: Executor,
    tenant: str,
) -> tuple[diagnostics.Diagnosis, Spent]:
    """The diagnosis of `adapter` by `folds` of its support, and what it took. Raises what the executor raises."""
    jobs = _Jobs(executor, served, tenant, adapter.manifest, Spent())
    (theta, prior, in_context), *by_fold = await _together(
        _unadapted(jobs, folds), *(_held_out(jobs, fold, request.samples) for fold in folds)
    )
    return await asyncio.to_thread(_conclude, adapter, request, theta, by_fold, prior, in_context), jobs.spent


async def _held_out(jobs: _Jobs, fold: Fold, samples: int) -> list[Scored]:
    job = jobs.adapt_job(fold)
    posterior = await jobs.adapt(job)
    queries = fold.queries(jobs.manifest.support.examples)
    return await jobs.ask(job, posterior, queries, fold.held_out, samples)


async def _unadapted(jobs: _Jobs, folds: Sequence[Fold]) -> tuple[TaskPosterior, list[Scored], list[Scored]]:
    """The posterior before any step; what its mean answers for all held-out examples, as they are and behind demonstrations."""
    job = jobs.adapt_job(replace(folds[0], kept=folds[0].kept[:1]))
    job = replace(job, settings=replace(job.settings, steps=0))
    theta = await jobs.adapt(job)
    support, indices = jobs.manifest.support.examples, [i for fold in folds for i in fold.held_out]
    plain = tuple(support[i].query for i in indices)
    demonstrated = await asyncio.to_thread(_demonstrated, jobs, folds)
    prior = await jobs.ask(job, theta, plain, indices, 0)
    return theta, prior, await jobs.ask(job, theta, demonstrated, indices, 0)


def _demonstrated(jobs: _Jobs, folds: Sequence[Fold]) -> tuple[Query, ...]:
    """Each held-out example behind those that its fold adapts to, as many as fit. Examples of a fold share their prompt."""
    support, served = jobs.manifest.support.examples, jobs.served
    template = PromptTemplate.from_json(served.template)
    most = min(IN_CONTEXT_TOKENS, served.encoder.max_tokens)
    return tuple(
        fitting(fold.support(support), query, served.encoder, template, most)
        for fold in folds
        for query in fold.queries(support)
    )


def _conclude(
    adapter: StoredAdapter,
    request: DiagnoseRequest,
    theta: TaskPosterior,
    by_fold: Sequence[list[Scored]],
    prior: Sequence[Scored],
    in_context: Sequence[Scored],
) -> diagnostics.Diagnosis:
    from abmll.movement import movement  # noqa: PLC0415 - with torch, which the command line can do without

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


async def _together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all; where one fails, the others are cancelled and its error is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
