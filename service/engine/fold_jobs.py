"""Adapters of parts of a support, asked for the rest: ordinary jobs, side by side, so that they share batches with other work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from abmll.assurance.folds import Fold, HeldOutAnswer, held_out_answers
from abmll.assurance.held_out import SAMPLES, HeldOutSummary
from abmll.prediction.settings import PredictSettings
from abmll.text.prompting import EncodedPrompt
from service.engine.fitting import Fitting
from service.executors.contract import AdaptJob, Executor, Losses, PredictJob, Timed

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
class FoldJobs:
    """How the jobs about one adaptation, `whole`, are carried out, for whom, and what they have taken."""

    executor: Executor
    tenant: str
    whole: Fitting
    spent: Spent = field(default_factory=Spent)

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
        adapter: TaskPosterior,
        prompts: tuple[EncodedPrompt, ...],
        indices: Sequence[int],
        samples: int,
    ) -> list[HeldOutAnswer]:
        """The answers of the adapter that `job` made to `prompts`, those of the support examples at `indices`."""
        work = PredictJob(job.adapter_id, prompts, PredictSettings(samples, self.whole.seed))
        done = await self.executor.predict(work, adapter, tenant=self.tenant)
        self.spent.predict_seconds += done.run_seconds
        return held_out_answers(self.whole.support, indices, done.value)

    async def held_out(self, fold: Fold, samples: int) -> list[HeldOutAnswer]:
        """The examples that `fold` holds out, as the adapter of the others answers them."""
        job = self.whole.part(fold.kept).job
        done = await self.adapt(job)
        prompts = self.whole.prompts(fold.held_out)
        return await self.ask(job, done.value.posterior, prompts, fold.held_out, samples)

    async def calibrated(
        self, on_progress: Callable[[Losses], None] | None
    ) -> tuple[Timed[Adaptation], HeldOutSummary]:
        """The whole adaptation at the temperature that its held-out examples choose (see `held_out`); at least one fold."""
        done, *by_fold = await together(
            self.adapt(self.whole.job, on_progress),
            *(self.held_out(fold, SAMPLES) for fold in self.whole.folds),
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
