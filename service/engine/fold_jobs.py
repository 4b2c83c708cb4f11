"""Adapters of parts of a support, asked for the rest: ordinary jobs, side by side, so that they share batches with other work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from abmll.assurance.folds import Fold, HeldOutAnswer, held_out_answers
from abmll.assurance.held_out import SAMPLES, HeldOutSummary
from abmll.text.tasks import Query
from service.engine.identity import adapter_id
from service.executors.contract import AdaptJob, Executor, Losses, PredictJob, ServedModel, Timed

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.posterior.posteriors import TaskPosterior


@dataclass
class Spent:
    """Seconds of the model's time, over all jobs."""

    adapt_seconds: float = 0.0
    predict_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """In all."""
        return self.adapt_seconds + self.predict_seconds


@dataclass(frozen=True)
class Jobs:
    """How the jobs about one adaptation, `whole`, are carried out, for whom, and what they have taken."""

    executor: Executor
    served: ServedModel
    tenant: str
    whole: AdaptJob
    spent: Spent = field(default_factory=Spent)

    def part(self, fold: Fold) -> AdaptJob:
        """The same on the part of the support that `fold` keeps."""
        return replace(self.whole, support=fold.support(self.whole.support))

    async def adapt(
        self, job: AdaptJob, on_progress: Callable[[Losses], None] | None = None
    ) -> Timed[Adaptation]:
        """What the executor gives for `job`."""
        done = await self.executor.adapt(job, tenant=self.tenant, on_progress=on_progress)
        self.spent.adapt_seconds += done.run_seconds
        return done

    async def ask(
        self,
        job: AdaptJob,
        posterior: TaskPosterior,
        queries: tuple[Query, ...],
        indices: Sequence[int],
        samples: int,
    ) -> list[HeldOutAnswer]:
        """The answers to `queries`, which are those of the support examples at `indices`, of the posterior that `job` made."""
        work = PredictJob(
            adapter_id(job, self.served), posterior, queries, samples, self.whole.seed, 1, truncate=True
        )
        done = await self.executor.predict(work, tenant=self.tenant)
        self.spent.predict_seconds += done.run_seconds
        return held_out_answers(self.whole.support, indices, done.value)

    async def held_out(self, fold: Fold, samples: int) -> list[HeldOutAnswer]:
        """The examples that `fold` holds out, as the adapter of the others answers them."""
        job = self.part(fold)
        done = await self.adapt(job)
        return await self.ask(
            job, done.value.posterior, fold.queries(self.whole.support), fold.held_out, samples
        )

    async def calibrated(
        self, folds: Sequence[Fold], on_progress: Callable[[Losses], None] | None
    ) -> tuple[Timed[Adaptation], HeldOutSummary]:
        """The whole adaptation at the temperature that its held-out examples choose (see `held_out`); at least one fold."""
        done, *by_fold = await together(
            self.adapt(self.whole, on_progress), *(self.held_out(fold, SAMPLES) for fold in folds)
        )
        answers = [row for rows in by_fold for row in rows]
        choice = done.value.multiple_choice
        found = await asyncio.to_thread(HeldOutSummary.of, answers, multiple_choice=choice)
        posterior = done.value.posterior.with_temperature_times(found.temperature_factor)
        return replace(done, value=replace(done.value, posterior=posterior)), found


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all; where one fails, the others are cancelled and its error is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
