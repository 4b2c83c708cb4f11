"""The jobs of one adaptation: the adapter, and one for each fold, which answers that fold.

They are ordinary jobs and run side by side, so a worker batches them with each other and with other
work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from abmll.assurance.folds import Fold, HeldOutAnswer, held_out_answers
from abmll.assurance.held_out import SAMPLES, HeldOutSummary, at_own_temperature
from abmll.prediction.settings import PredictSettings
from abmll.text.prompting import EncodedPrompt
from service.engine.specs import AdaptationSpec
from service.executors.contract import AdaptJob, Executor, Losses, PredictJob, Timed

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.posterior.posteriors import TaskPosterior


@dataclass
class ModelTime:
    """Seconds that workers spent on jobs."""

    adapt_seconds: float = 0.0
    predict_seconds: float = 0.0

    @property
    def total_seconds(self) -> float:
        """Return the seconds of adaptations and predictions together."""
        return self.adapt_seconds + self.predict_seconds


@dataclass(frozen=True)
class AdaptationJobs:
    """Sends jobs on the support of `whole` to the executor, and adds up the time they take."""

    executor: Executor
    tenant: str
    whole: AdaptationSpec
    spent: ModelTime = field(default_factory=ModelTime)

    async def make(
        self, on_progress: Callable[[Losses], None] | None
    ) -> tuple[Timed[Adaptation], HeldOutSummary | None]:
        """Return the adaptation to the whole support, and a summary of its held-out answers.

        Its temperature is the one that the held-out answers choose. Without folds there are none,
        and no summary. Raises what the executor raises.
        """
        if not self.whole.folds:
            return await self.adapt(self.whole.job, on_progress), None
        done, *by_fold = await together(
            self.adapt(self.whole.job, on_progress),
            *(self.held_out(fold, SAMPLES) for fold in self.whole.folds),
        )
        answers = [row for rows in by_fold for row in rows]
        adaptation, found = await asyncio.to_thread(
            at_own_temperature, done.value, self.whole.support, self.whole.examples, answers
        )
        return replace(done, value=adaptation), found

    async def adapt(
        self, job: AdaptJob, on_progress: Callable[[Losses], None] | None = None
    ) -> Timed[Adaptation]:
        """Return the adaptation of one job."""
        done = await self.executor.adapt(job, tenant=self.tenant, on_progress=on_progress)
        self.spent.adapt_seconds += done.run_seconds
        return done

    async def answers(
        self,
        job: AdaptJob,
        adapter: TaskPosterior,
        prompts: tuple[EncodedPrompt, ...],
        indices: Sequence[int],
        samples: int,
    ) -> list[HeldOutAnswer]:
        """Return the answers to `prompts` by the adapter that `job` made.

        The prompts show the support examples at `indices`.
        """
        settings = PredictSettings(samples, self.whole.seed)
        work = PredictJob(job.adapter_id, prompts, settings, job.posterior)
        done = await self.executor.predict(work, adapter, tenant=self.tenant)
        self.spent.predict_seconds += done.run_seconds
        return held_out_answers(self.whole.support, indices, done.value)

    async def held_out(self, fold: Fold, samples: int) -> list[HeldOutAnswer]:
        """Return the answers to the examples of `fold` by an adapter fitted without them."""
        job = self.whole.part(fold.kept).job
        done = await self.adapt(job)
        prompts = self.whole.prompts(fold.held_out)
        return await self.answers(job, done.value.posterior, prompts, fold.held_out, samples)


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Return the results of all, in order; if one fails, cancel the others and raise its error."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
