"""The executor within the server's process: one thread that owns the model, and its queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from service.executors.contract import AdaptJob, PredictJob, ServedModel, Timed, Worker

if TYPE_CHECKING:
    from abmll.adapt import Adaptation
    from abmll.predict import Prediction

T = TypeVar("T")


class InlineExecutor:
    """Runs jobs one after another, in order of arrival. The engine bounds how many there are."""

    def __init__(self, load: Callable[[], Worker]) -> None:
        """`load` builds the worker; it is called once, on the thread that then owns it."""
        self._load = load
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._worker: Worker | None = None

    async def start(self) -> ServedModel:
        """Load the model on its thread."""
        self._worker = (await self._run(self._load)).value
        return self._worker.served

    async def adapt(self, job: AdaptJob) -> Timed[Adaptation]:
        """See `Worker.adapt`."""
        worker = self._loaded()
        return await self._run(lambda: worker.adapt(job))

    async def predict(self, job: PredictJob) -> Timed[Sequence[Prediction]]:
        """See `Worker.predict`."""
        worker = self._loaded()
        return await self._run(lambda: worker.predict(job))

    async def close(self) -> None:
        """Drop the queue; a job that is running finishes in its thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _loaded(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("the executor was not started")
        return self._worker

    async def _run(self, work: Callable[[], T]) -> Timed[T]:
        submitted = time.monotonic()

        def timed() -> Timed[T]:
            started = time.monotonic()
            value = work()
            return Timed(value, started - submitted, time.monotonic() - started)

        # Cancelling the awaiter cancels the future, which the pool skips unless it has started.
        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)
