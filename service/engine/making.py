"""Makes an adapter to be stored: the jobs of its adaptation, what they took, and its record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from service.engine.adaptation_jobs import AdaptationJobs
from service.engine.adapter_records import adapter_of
from service.engine.answers import Timings
from service.executors.contract import Losses
from service.metrics import Metrics

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from model_store.adapters.store import StoredAdapter


async def make_adapter(
    jobs: AdaptationJobs,
    metrics: Metrics,
    timings: Timings | None = None,
    on_progress: Callable[[Losses], None] | None = None,
) -> StoredAdapter:
    """Return the adapter that `jobs` make. `timings` are those of the request that waits, if one
    does.

    There is no deadline, since requests that wait for the same adapter may have more time left. The
    registry cancels it when none waits. Raises what the executor raises, and `FitDivergedError` for
    what must not be stored, whatever the worker says.
    """
    spec = jobs.whole
    done, held_out = await jobs.make(on_progress)
    await asyncio.to_thread(_check, done.value)
    metrics.queue_seconds.labels("adapt").observe(done.queue_seconds)
    metrics.adapt_seconds.observe(jobs.spent.total_seconds)
    metrics.adapt_steps.inc(spec.settings.steps * (1 + len(spec.folds)))
    metrics.tokens.labels("support").inc(done.value.support_tokens)
    if timings is not None:
        timings.queue_seconds += done.queue_seconds
        timings.adapt_seconds = jobs.spent.total_seconds
    return adapter_of(spec, done.value, held_out)


def _check(adaptation: Adaptation) -> None:
    from abmll.adaptation.run import check_fit  # noqa: PLC0415 - imports torch

    check_fit(adaptation.losses, adaptation.posterior.values)
