"""The jobs of a pool: placed on workers, and placed again when a worker is lost."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from service.errors import DeadlineExceededError, WorkerLostError
from service.executors.contract import (
    DEFAULT_TENANT,
    GLOBAL,
    AdapterNotHeldError,
    Job,
    Losses,
    Partial,
    Timed,
    is_background,
    lane_of,
)
from service.executors.members import Member, Members, PendingJob
from service.executors.messages import Cancel, Done, Submit
from service.executors.placement import SPILL_JOBS, place
from service.gateway_metrics import Occupancy
from service.metrics import Metrics

if TYPE_CHECKING:
    from abmll.posterior.posteriors import TaskPosterior


class PendingJobs:
    """Owns the jobs that callers wait for, and which worker has each."""

    def __init__(self, members: Members, metrics: Metrics) -> None:
        """Place jobs on the workers that are up."""
        self._members, self._metrics = members, metrics
        self._pending: dict[int, PendingJob] = {}
        self._unplaced: dict[int, PendingJob] = {}  # while no worker is up
        self._ids = itertools.count()

    async def run(
        self,
        job: Job,
        adapter: TaskPosterior | None,
        tenant: str,
        deadline: float | None,
        on_progress: Callable[[Any], None] | None,
    ) -> Timed[Any]:
        """Return what a worker makes of the job.

        Raises `DeadlineExceededError`, `WorkerLostError`, and what the worker raises.
        """
        pending = self._add(job, adapter, tenant, deadline, on_progress)
        lane = self._metrics.lane_jobs.labels(lane_of(job))
        lane.inc()
        try:
            self._place(pending)
            async with asyncio.timeout(deadline) as timeout:
                return await pending.answer
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise DeadlineExceededError("the job was not done in time") from error
        finally:
            lane.dec()
            self._forget(pending)

    async def run_on(self, member: Member, job: Job) -> Timed[Any]:
        """Return what this worker makes of the job, which moves to no other.

        Raises `WorkerLostError`, and what the worker raises.
        """
        pending = self._add(job, None, DEFAULT_TENANT, None, None)
        pending.tied = True
        try:
            self._send(member, pending)
            return await pending.answer
        finally:
            self._forget(pending)

    def place_waiting(self) -> None:
        """Place the jobs that wait for a worker."""
        for pending in list(self._unplaced.values()):
            del self._unplaced[pending.id]
            self._place(pending)

    def move_from(self, member: Member, *, lost: bool) -> None:
        """Place the jobs of a worker that ended on others.

        Where it was `lost`, a job that it had begun may have caused the loss: it moves only once.
        """
        jobs, member.pending = member.pending, {}
        for pending in jobs.values():
            pending.began &= lost
            self._recover(pending)

    def cancel_all(self) -> None:
        """Cancel what callers wait for."""
        for pending in list(self._pending.values()):
            pending.answer.cancel()

    def occupancy(self) -> Occupancy:
        """Return which jobs run and wait, and which adapters workers hold."""
        jobs = [pending for pending in self._pending.values() if not pending.tied]
        return Occupancy(
            running=[pending.job.adapter_id for pending in jobs if pending.began],
            waiting=[pending.job.adapter_id for pending in jobs if not pending.began],
            held=[adapter for member in self._members.all for adapter in member.held],
        )

    # ---- events of workers

    def on_began(self, member: Member, job_id: int) -> None:
        """Note that the worker has begun a job."""
        if job_id in member.pending:
            member.pending[job_id].began = True

    def on_progress(self, member: Member, job_id: int, partial: Losses | Partial) -> None:
        """Give the progress of a job to its caller."""
        pending = member.pending.get(job_id)
        if pending is not None and pending.on_progress is not None and not pending.answer.done():
            pending.on_progress(partial)

    def on_done(self, member: Member, done: Done) -> None:
        """Give the result of a job to its caller."""
        member.held = frozenset(done.held)
        pending = member.pending.pop(done.job_id, None)
        member.done += pending is not None and not pending.tied
        if pending and not pending.answer.done():
            waited = pending.waited + done.queue_seconds
            pending.answer.set_result(Timed(done.result, waited, done.run_seconds))

    def on_failed(self, member: Member, job_id: int, error: Exception) -> None:
        """Give the error of a job to its caller; send the adapter where only that was missing."""
        pending = member.pending.pop(job_id, None)
        if pending is None:
            return
        if isinstance(error, AdapterNotHeldError):
            member.held -= {error.adapter_id}
            if not pending.with_adapter:
                self._send(member, pending, with_adapter=True)
                return
        _fail(pending, error)

    # ---- where a job goes

    def _add(
        self,
        job: Job,
        adapter: TaskPosterior | None,
        tenant: str,
        deadline: float | None,
        on_progress: Callable[[Any], None] | None,
    ) -> PendingJob:
        now = time.monotonic()
        until = None if deadline is None else now + deadline
        answer: asyncio.Future[Timed[Any]] = asyncio.get_running_loop().create_future()
        pending = PendingJob(next(self._ids), job, adapter, tenant, until, answer, now, on_progress)
        self._pending[pending.id] = pending
        return pending

    def _place(self, pending: PendingJob) -> None:
        up = {member.name: member for member in self._members.all if member.state == "up"}
        if up:
            own = pending.job.adapter_id  # every worker holds the global posterior: any is as good
            key = f"{own}-{pending.id}" if own == GLOBAL else own
            # The rows of a batch are many: they are worth a copy of the adapter on every worker.
            spill = 0 if is_background(pending.tenant) else SPILL_JOBS
            chosen = place(key, {name: len(member.pending) for name, member in up.items()}, spill)
            self._send(up[chosen], pending)
        elif self._members.come_back:
            self._unplaced[pending.id] = pending
        else:
            _fail(pending, WorkerLostError("the worker was lost"))

    def _send(self, member: Member, pending: PendingJob, *, with_adapter: bool = False) -> None:
        """Send the job to the worker.

        Send the adapter too, `with_adapter` or where the worker is not known to hold it.
        """
        assert member.port is not None
        now = time.monotonic()
        pending.began, pending.waited = False, now - pending.submitted
        pending.with_adapter = with_adapter or pending.job.adapter_id not in member.held
        adapter = pending.adapter if pending.with_adapter else None
        member.pending[pending.id] = pending
        left = None if pending.deadline is None else pending.deadline - now
        member.port.send(
            Submit(pending.id, pending.job, adapter, pending.tenant, left, pending.on_progress is not None)
        )

    def _recover(self, pending: PendingJob) -> None:
        if pending.tied:
            _fail(pending, WorkerLostError("the worker was lost"))
            return
        if pending.began and pending.replayed:
            _fail(pending, WorkerLostError("two workers were lost while they worked on this"))
            return
        if pending.began:
            pending.replayed = True
            self._metrics.replays.inc()
        self._place(pending)

    def _forget(self, pending: PendingJob) -> None:
        """Drop a job whose caller has its answer or has left, on its worker too."""
        self._pending.pop(pending.id, None)
        self._unplaced.pop(pending.id, None)
        for member in self._members.all:
            if member.pending.pop(pending.id, None) is not None and member.port is not None:
                member.port.send(Cancel(pending.id))


def _fail(pending: PendingJob, error: BaseException) -> None:
    if not pending.answer.done():
        pending.answer.set_exception(error)
