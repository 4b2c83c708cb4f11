"""A worker that serves several global posteriors of one base: a worker for each, taking turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from service.executors.contract import Job, Run, ServedModel, Worker

if TYPE_CHECKING:
    from abmll.posterior.posteriors import TaskPosterior


class PosteriorsWorker:
    """Gives each job to the worker of its posterior. One thread owns it, and with it all of them.

    Runs of different posteriors may be in one unit, and are in no batch together.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        """Serve the posteriors of these workers; that of the first is the default."""
        self._workers, first = workers, workers[0].served
        self._served = replace(first, others=tuple(worker.served for worker in workers[1:]))
        self._by_posterior = {worker.served.posterior_digest: worker for worker in workers}
        self._owners: dict[int, Worker] = {}
        """Workers of the runs that are not finished, by the identity of the run."""

    @property
    def served(self) -> ServedModel:
        """See `Worker.served`."""
        return self._served

    @property
    def tokens_per_unit(self) -> int:
        """See `Worker.tokens_per_unit`."""
        return min(worker.tokens_per_unit for worker in self._workers)

    @property
    def adaptations_at_once(self) -> int:
        """See `Worker.adaptations_at_once`."""
        return min(worker.adaptations_at_once for worker in self._workers)

    def begin(self, job: Job, adapter: TaskPosterior | None = None) -> Run:
        """See `Worker.begin`. Raises `KeyError` for a posterior that is not served."""
        worker = self._by_posterior[job.posterior] if job.posterior else self._workers[0]
        run = worker.begin(job, adapter)
        self._owners[id(run)] = worker
        return run

    def advance(self, runs: Sequence[Run]) -> None:
        """See `Worker.advance`. After an error in a batch, runs of other posteriors may have
        advanced.
        """
        for worker in self._workers:
            own = [run for run in runs if self._owners[id(run)] is worker and not run.done]
            if own:
                worker.advance(own)

    def finish(self, run: Run) -> None:
        """See `Worker.finish`."""
        self._owners.pop(id(run)).finish(run)

    def held(self) -> Sequence[str]:
        """See `Worker.held`."""
        return tuple(id for worker in self._workers for id in worker.held())
