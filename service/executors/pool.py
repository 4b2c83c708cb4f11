"""The executor: places jobs on workers, and places them again when a worker is lost.

It runs on the event loop, and reaches each worker by a `Port`: to a thread (`inline.py`) or to a
process (`process.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.errors import DeadlineExceededError, WorkerLostError
from service.executors.contract import (
    DEFAULT_TENANT,
    GLOBAL,
    AdapterNotHeldError,
    AdaptJob,
    Job,
    Losses,
    Partial,
    PredictJob,
    ServedModel,
    Timed,
    WorkerState,
    WorkerStatus,
    lane_of,
)
from service.executors.messages import (
    Advanced,
    Beat,
    Began,
    Cancel,
    Done,
    Ended,
    Event,
    Failed,
    Ready,
    Stop,
    Submit,
    UnitRan,
)
from service.executors.placement import place
from service.executors.ports import Port
from service.executors.self_check import SelfCheck
from service.executors.supervision import Supervision
from service.gateway_metrics import Occupancy
from service.metrics import Metrics

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.posterior.posteriors import TaskPosterior
    from abmll.prediction.run import Prediction

log = logging.getLogger(__name__)
END_SECONDS = 5.0
"""How long a worker has to end by itself, once it is asked to."""


@dataclass(eq=False)
class _PendingJob:
    """A job that a caller waits for, and its adapter, so that another worker can take it over.

    `began` says whether its worker has begun it, `replayed` whether a worker was lost that had. One
    that is `tied` to its worker moves to no other.
    """

    id: int
    job: Job
    adapter: TaskPosterior | None
    tenant: str
    deadline: float | None
    answer: asyncio.Future[Timed[Any]]
    submitted: float
    on_progress: Callable[[Any], None] | None
    began: bool = False
    replayed: bool = False
    with_adapter: bool = False
    waited: float = 0.0
    tied: bool = False


@dataclass(eq=False)
class _Member:
    """One worker of the pool, through all restarts."""

    name: str
    state: WorkerState = "down"
    port: Port | None = None
    pending: dict[int, _PendingJob] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    restarts: int = 0
    losses: int = 0
    up_since: float = 0.0
    silent_beats: int = 0
    restarting: bool = False
    leaving: str = ""
    """Why the pool itself ends it, to start it again, which is no loss; empty where it does not."""
    done: int = 0
    memory_bytes: int | None = None
    served: ServedModel | None = None
    checked: float = 0.0
    checking: bool = False
    slow_checks: int = 0


class WorkerPool:
    """An `Executor` with workers behind ports."""

    def __init__(
        self,
        spawn: Callable[[int], Port],
        workers: int,
        metrics: Metrics,
        supervision: Supervision | None,
        check: SelfCheck | None = None,
    ) -> None:
        """Get the port of each worker from `spawn`, by its index.

        Without `supervision`, workers are not restarted. With `check`, a worker gets no job before
        it has passed the check, and is checked again while it is idle.
        """
        self._check, self._leaving = check, asyncio.Lock()
        self._spawn, self._metrics, self._supervision = spawn, metrics, supervision
        self._members = [_Member(str(index)) for index in range(workers)]
        self._pending: dict[int, _PendingJob] = {}
        self._unplaced: dict[int, _PendingJob] = {}  # while no worker is up
        self._ids = itertools.count()
        self._served: asyncio.Future[ServedModel] | None = None
        self._load_error: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        metrics.gateway.occupancy = self._occupancy

    async def start(self) -> ServedModel:
        """Wait until a first worker is up. Raises what loading raised if none can be loaded."""
        self._served = asyncio.get_running_loop().create_future()
        for member in self._members:
            self._launch(member)
        served = await asyncio.shield(self._served)  # not cancelled with this call
        # Workers that failed before a first one was up are not restarted yet.
        for member in self._members:
            if member.state == "down" and not member.restarting:
                self._restart_later(member)
        if self._supervision is not None:
            self._start_task(self._supervise(self._supervision))
        return served

    async def adapt(
        self,
        job: AdaptJob,
        *,
        tenant: str = DEFAULT_TENANT,
        deadline: float | None = None,
        on_progress: Callable[[Losses], None] | None = None,
    ) -> Timed[Adaptation]:
        """See `Executor.adapt`."""
        return await self._run(job, None, tenant, deadline, on_progress)

    async def predict(
        self,
        job: PredictJob,
        adapter: TaskPosterior | None,
        *,
        tenant: str = DEFAULT_TENANT,
        deadline: float | None = None,
        on_progress: Callable[[Partial], None] | None = None,
    ) -> Timed[Sequence[Prediction]]:
        """See `Executor.predict`."""
        return await self._run(job, adapter, tenant, deadline, on_progress)

    def workers(self) -> Sequence[WorkerStatus]:
        """See `Executor.workers`."""
        return [
            WorkerStatus(m.name, m.state, m.restarts, len(m.pending), m.memory_bytes) for m in self._members
        ]

    async def restart(self) -> None:
        """See `Executor.restart`."""
        if self._supervision is None:
            log.warning("the worker in the server's own process cannot be started again")
            return
        for member in self._members:
            await self._replace(member, "asked for", self._supervision)
            while member.state != "up" and not self._closing:
                await asyncio.sleep(0.02)

    def _occupancy(self) -> Occupancy:
        jobs = [pending for pending in self._pending.values() if not pending.tied]
        return Occupancy(
            running=[pending.job.adapter_id for pending in jobs if pending.began],
            waiting=[pending.job.adapter_id for pending in jobs if not pending.began],
            held=[adapter for member in self._members for adapter in member.held],
        )

    async def close(self) -> None:
        """Drop all jobs and end the workers."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        for pending in list(self._pending.values()):
            pending.answer.cancel()
        ports = [member.port for member in self._members if member.port is not None]
        for member in self._members:
            self._set_state(member, "down")
        await asyncio.gather(*(asyncio.to_thread(port.close) for port in ports))

    # ---- jobs

    async def _run(
        self,
        job: Job,
        adapter: TaskPosterior | None,
        tenant: str,
        deadline: float | None,
        on_progress: Callable[[Any], None] | None,
    ) -> Timed[Any]:
        if self._served is None or not self._served.done():
            raise RuntimeError("the executor was not started")
        now = time.monotonic()
        until = None if deadline is None else now + deadline
        answer: asyncio.Future[Timed[Any]] = asyncio.get_running_loop().create_future()
        pending = _PendingJob(next(self._ids), job, adapter, tenant, until, answer, now, on_progress)
        self._pending[pending.id] = pending
        lane = self._metrics.lane_jobs.labels(lane_of(job))
        lane.inc()
        try:
            self._place(pending)
            async with asyncio.timeout(deadline) as timeout:
                return await answer
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise DeadlineExceededError("the job was not done in time") from error
        finally:
            lane.dec()
            self._forget(pending)

    def _place(self, pending: _PendingJob) -> None:
        up = {member.name: member for member in self._members if member.state == "up"}
        if up:
            own = pending.job.adapter_id  # every worker holds the global posterior: any is as good
            key = f"{own}-{pending.id}" if own == GLOBAL else own
            chosen = place(key, {name: len(member.pending) for name, member in up.items()})
            self._send(up[chosen], pending)
        elif self._supervision is not None and not self._closing:
            self._unplaced[pending.id] = pending
        else:
            self._fail(pending, WorkerLostError("the worker was lost"))

    def _send(self, member: _Member, pending: _PendingJob, *, with_adapter: bool = False) -> None:
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

    def _forget(self, pending: _PendingJob) -> None:
        """Drop a job whose caller has its answer or has left, on its worker too."""
        self._pending.pop(pending.id, None)
        self._unplaced.pop(pending.id, None)
        for member in self._members:
            if member.pending.pop(pending.id, None) is not None and member.port is not None:
                member.port.send(Cancel(pending.id))

    def _fail(self, pending: _PendingJob, error: BaseException) -> None:
        if not pending.answer.done():
            pending.answer.set_exception(error)

    # ---- events of workers

    def _on(self, member: _Member, port: Port, event: Event) -> None:
        if member.port is not port:  # the worker was restarted meanwhile
            return
        member.silent_beats = 0
        match event:
            case Ready(served):
                self._on_ready(member, served)
            case Beat(busy_seconds, unit_size):
                self._on_memory(member, event)
                if self._supervision is not None and self._supervision.hangs(busy_seconds, unit_size):
                    self._fence(member, "hung", f"hangs in a unit for {busy_seconds:.0f} s")
            case Began(job_id):
                if job_id in member.pending:
                    member.pending[job_id].began = True
            case UnitRan():
                self._metrics.record_unit(event.lane, event.runs, event.tokens, event.seconds)
            case Advanced(job_id, partial):
                self._on_progress(member, job_id, partial)
            case Done(job_id, result, queue_seconds, run_seconds, held):
                member.held = frozenset(held)
                pending = member.pending.pop(job_id, None)
                member.done += pending is not None and not pending.tied
                if pending and not pending.answer.done():
                    pending.answer.set_result(Timed(result, pending.waited + queue_seconds, run_seconds))
                self._renew_outgrown(member)
            case Failed(job_id, error):
                self._on_failed(member, job_id, error)
            case Ended(error):
                self._on_ended(member, error)

    def _on_progress(self, member: _Member, job_id: int, partial: Losses | Partial) -> None:
        pending = member.pending.get(job_id)
        if pending is not None and pending.on_progress is not None and not pending.answer.done():
            pending.on_progress(partial)

    def _on_failed(self, member: _Member, job_id: int, error: Exception) -> None:
        pending = member.pending.pop(job_id, None)
        if pending is None:
            return
        if isinstance(error, AdapterNotHeldError):
            member.held -= {error.adapter_id}
            if not pending.with_adapter:
                self._send(member, pending, with_adapter=True)
                return
        self._fail(pending, error)

    # ---- start, loss and restart of workers

    def _launch(self, member: _Member) -> None:
        loop = asyncio.get_running_loop()
        port = member.port = self._spawn(int(member.name))
        self._set_state(member, "starting")
        member.silent_beats, member.held, member.restarting = 0, frozenset(), False
        member.leaving, member.done, member.slow_checks, member.checking = "", 0, 0, False

        def emit(event: Event) -> None:
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._on, member, port, event)

        port.start(emit)

    def _on_ready(self, member: _Member, served: ServedModel) -> None:
        assert self._served is not None and member.port is not None
        if self._served.done() and self._served.result().identity != served.identity:
            log.error("worker %s loaded another model than the server started with", member.name)
            member.port.kill()
            return
        member.served = served
        if self._check is not None:
            self._start_task(self._check_worker(member, self._check))
            return
        self._take_up(member, served)

    def _take_up(self, member: _Member, served: ServedModel) -> None:
        """Give jobs to a worker from now on."""
        assert self._served is not None
        self._set_state(member, "up")
        member.up_since = member.checked = time.monotonic()
        if not self._served.done():
            self._served.set_result(served)
        for pending in list(self._unplaced.values()):
            del self._unplaced[pending.id]
            self._place(pending)

    def _on_ended(self, member: _Member, error: BaseException | None) -> None:
        assert self._served is not None
        was_up = member.state in ("up", "draining")
        member.port, member.held = None, frozenset()
        self._set_state(member, "down")
        if self._closing:
            return
        if member.leaving:
            self._on_left(member)
            return
        if was_up and self._supervision is not None:
            stable = self._supervision.is_stable(time.monotonic() - member.up_since)
            member.losses = 0 if stable else member.losses
        member.losses += 1
        self._load_error = self._load_error or error or RuntimeError("the worker ended while it loaded")
        if not self._served.done() and all(other.state == "down" for other in self._members):
            self._served.set_exception(self._load_error)  # `start` raises it
            return
        log.error("worker %s %s: %r", member.name, "was lost" if was_up else "could not be loaded", error)
        if self._served.done():
            self._restart_later(member)
        lost, member.pending = member.pending, {}
        for pending in lost.values():
            self._recover(pending)

    def _recover(self, pending: _PendingJob) -> None:
        """Place the job on another worker.

        A job that had begun may have caused the loss, so that is done only once.
        """
        if pending.tied:
            self._fail(pending, WorkerLostError("the worker was lost"))
            return
        if pending.began and pending.replayed:
            self._fail(pending, WorkerLostError("two workers were lost while they worked on this"))
            return
        if pending.began:
            pending.replayed = True
            self._metrics.replays.inc()
        self._place(pending)

    def _restart_later(self, member: _Member) -> None:
        if self._supervision is None or self._closing:
            return
        member.restarting = True
        self._start_task(self._relaunch(member, self._supervision.wait_seconds(max(1, member.losses))))

    async def _relaunch(self, member: _Member, wait_seconds: float) -> None:
        await asyncio.sleep(wait_seconds)
        member.restarts += 1
        self._metrics.worker_restarts.labels(member.name).inc()
        try:
            self._launch(member)
        except OSError as error:  # no pipe or process could be made
            self._on_ended(member, error)

    async def _supervise(self, supervision: Supervision) -> None:
        """Kill workers whose heartbeats do not come, and check those that are idle.

        Heartbeats are counted, not timed: if this process was stopped for a while itself, no worker
        is to blame.
        """
        while True:
            await asyncio.sleep(supervision.heartbeat_seconds)
            for member in self._members:
                # A worker that loads sends no heartbeats, since imports hold the interpreter long.
                if member.state not in ("up", "draining") or member.port is None:
                    continue
                member.silent_beats += 1
                if supervision.is_silent(member.silent_beats):
                    self._fence(member, "silent", "is silent")
                elif self._check is not None and self._may_be_checked(member, supervision):
                    self._start_task(self._check_worker(member, self._check))

    # ---- checks, and workers that the pool itself starts again

    def _may_be_checked(self, member: _Member, supervision: Supervision) -> bool:
        idle = member.state == "up" and not member.pending and not member.checking
        return idle and time.monotonic() - member.checked >= supervision.check_seconds

    async def _check_worker(self, member: _Member, check: SelfCheck) -> None:
        """Give a worker the job with known answers, and end it where it fails.

        A worker that starts gets jobs once it has passed.
        """
        port, served = member.port, member.served
        assert served is not None
        member.checking, now = True, time.monotonic()
        answer: asyncio.Future[Timed[Any]] = asyncio.get_running_loop().create_future()
        pending = _PendingJob(
            next(self._ids), check.job(served), None, DEFAULT_TENANT, None, answer, now, None, tied=True
        )
        self._pending[pending.id] = pending
        try:
            self._send(member, pending)
            done = await answer
            wrong = check.wrong(done.value)
        except WorkerLostError:
            return  # it has ended, and is started again
        except Exception as error:
            wrong = f"the check failed: {error!r}"
        finally:
            self._forget(pending)
        if member.port is not port:
            return
        member.checking, member.checked = False, time.monotonic()
        if wrong is not None:
            self._load_error = self._load_error or RuntimeError(f"the worker failed its check: {wrong}")
            self._fence(member, "wrong", f"failed its check: {wrong}")
        elif member.state == "starting":
            check.times_slower(done.run_seconds)
            self._take_up(member, served)
        elif not member.pending:  # beside other jobs a check takes longer
            self._judge_speed(member, check.times_slower(done.run_seconds))

    def _judge_speed(self, member: _Member, times: float) -> None:
        assert self._supervision is not None
        member.slow_checks = member.slow_checks + 1 if times > self._supervision.slow_factor else 0
        if member.slow_checks >= self._supervision.slow_checks:
            self._fence(member, "slow", f"took {times:.0f} times as long as the fastest check")

    def _fence(self, member: _Member, reason: str, what: str) -> None:
        """End a worker at once. Its jobs move to others, and it is started again."""
        log.error("worker %s %s: killed", member.name, what)
        self._metrics.fenced.labels(reason).inc()
        if member.port is not None:
            member.port.kill()

    def _on_memory(self, member: _Member, beat: Beat) -> None:
        member.memory_bytes = beat.memory_bytes
        if beat.memory_bytes is not None:
            self._metrics.worker_memory_bytes.labels(member.name).set(beat.memory_bytes)
        if beat.gpu_bytes is not None:
            self._metrics.worker_gpu_memory_bytes.labels(member.name).set(beat.gpu_bytes)
        self._renew_outgrown(member)

    def _renew_outgrown(self, member: _Member) -> None:
        """Start a worker again that has more memory, or has done more, than it may."""
        if self._supervision is None or member.state != "up" or member.leaving:
            return
        reason = self._supervision.outgrown(member.memory_bytes, member.done)
        if reason is None:
            return
        member.leaving = reason
        self._metrics.fenced.labels(reason).inc()
        self._start_task(self._replace(member, reason, self._supervision))

    async def _replace(self, member: _Member, reason: str, supervision: Supervision) -> None:
        """Let a worker finish its jobs, for a while, and end it; `_on_left` starts it again.

        One at a time, and not before another one is up, if there are others.
        """
        async with self._leaving:
            while member.state == "up" and self._is_the_only_one_of_several(member):
                await asyncio.sleep(0.02)
            port = member.port
            if member.state != "up" or port is None:  # it was lost, and is started again anyway
                return
            log.info("worker %s finishes its jobs and is started again: %s", member.name, reason)
            member.leaving = reason
            self._set_state(member, "draining")
            until = time.monotonic() + supervision.leave_seconds
            while member.pending and member.port is port and time.monotonic() < until:
                await asyncio.sleep(0.01)
            port.send(Stop())
            until = time.monotonic() + END_SECONDS
            while member.port is port and time.monotonic() < until:
                await asyncio.sleep(0.01)
            if member.port is port:
                port.kill()

    def _is_the_only_one_of_several(self, member: _Member) -> bool:
        others = [other for other in self._members if other is not member]
        return bool(others) and not any(other.state == "up" for other in others) and not self._closing

    def _on_left(self, member: _Member) -> None:
        """Start a worker again at once. Its jobs move to others, and are no suspects of a loss.

        One that outgrew its memory soon after its start waits, longer each time: the limit is too
        low.
        """
        assert self._supervision is not None
        soon = not self._supervision.is_stable(time.monotonic() - member.up_since)
        member.losses = member.losses + 1 if soon and member.leaving == "memory" else 0
        if member.losses > 1:
            log.warning("worker %s outgrows worker_memory_bytes soon after its start", member.name)
        lost, member.pending = member.pending, {}
        for pending in lost.values():
            pending.began = False
            self._recover(pending)
        member.restarting = True
        wait = self._supervision.wait_seconds(member.losses) if member.losses else 0.0
        self._start_task(self._relaunch(member, wait))

    def _set_state(self, member: _Member, state: WorkerState) -> None:
        member.state = state
        self._metrics.worker_up.labels(member.name).set(state == "up")

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
