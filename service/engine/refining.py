"""Adaptations that go on in the background after their requests were answered by an instant
adapter.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from service.engine.adaptation_jobs import AdaptationJobs
from service.engine.making import make_adapter
from service.engine.names import Names
from service.engine.pricing import price_of
from service.engine.registry import AdapterRegistry
from service.engine.specs import AdaptationSpec
from service.executors.contract import Executor
from service.metrics import Metrics

log = logging.getLogger(__name__)
NOTE = "refined"
"""The note of the version by which a name moves to a refined adapter."""


class Refining:
    """Owns the refined adapters in the making, one task for each. Used from one event loop.

    They have no deadline and no client that waits. What ends early leaves nothing behind: a later
    request begins it anew.
    """

    def __init__(self, adapters: AdapterRegistry, names: Names, executor: Executor, metrics: Metrics) -> None:
        self._adapters, self._names = adapters, names
        self._executor, self._metrics = executor, metrics
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    async def begin(self, spec: AdaptationSpec, tenant: str) -> str | None:
        """Begin to make the adapter that `spec` is refined to, and return its id; None for no such.

        Where it is in the making, it goes on.
        """
        if spec.refined is None:
            return None
        refined_id = spec.refined.job.adapter_id
        price = await asyncio.to_thread(price_of, spec.served, spec.refined, None)
        if refined_id not in self._tasks:
            seconds = None if price is None else price.seconds
            work = self._refine(spec.job.adapter_id, spec.refined, tenant, seconds)
            self._tasks[refined_id] = task = asyncio.create_task(work)
            task.add_done_callback(lambda _: self._tasks.pop(refined_id))
        return refined_id

    async def settle(self) -> None:
        """Wait until all have ended."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def close(self) -> None:
        """Drop all."""
        for task in self._tasks.values():
            task.cancel()
        await self.settle()

    async def _refine(
        self, instant_id: str, refined: AdaptationSpec, tenant: str, expected_seconds: float | None
    ) -> None:
        """Make the refined adapter, and have the names of the instant one point to it."""
        refined_id = refined.job.adapter_id
        make = partial(make_adapter, AdaptationJobs(self._executor, tenant, refined), self._metrics)
        outcome = "failed"
        try:
            await self._adapters.obtain(refined_id, make, lambda: False, expected_seconds)
            await self._names.move(instant_id, refined_id, NOTE)
            outcome = "done"
        except asyncio.CancelledError:
            outcome = "dropped"
            log.info("adapter %s was not refined to %s: the server ends", instant_id, refined_id)
            raise
        except Exception as error:
            log.exception("adapter %s was not refined to %s: %s", instant_id, refined_id, error)
        finally:
            self._metrics.refined.labels(outcome).inc()
