"""The executor: has jobs done by workers, and starts workers again when they are lost.

It runs on the event loop, and reaches each worker by a `Port`: to a thread (`inline.py`) or to a
process (`process.py`). `jobs.py` places the jobs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from service.errors import WorkerLostError
from service.executors.checks import WorkerChecks
from service.executors.contract import (
    DEFAULT_TENANT,
    AdaptJob,
    Losses,
    Partial,
    PredictJob,
    ServedModel,
    Timed,
    WorkerStatus,
)
from service.executors.jobs import PendingJobs
from service.executors.launching import Launcher
from service.executors.members import Member, Members
from service.executors.messages import Advanced, Beat, Began, Done, Ended, Event, Failed, Ready, UnitRan
from service.executors.ports import Port
from service.executors.renewal import Renewal
from service.executors.self_check import SelfCheck
from service.executors.supervision import Supervision
from service.metrics import Metrics

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.posterior.posteriors import TaskPosterior
    from abmll.prediction.run import Prediction

log = logging.getLogger(__name__)


class WorkerPool:
    """An `Executor` with workers behind ports."""

    def __init__(
        self,
        spawn: Callable[[int], Port],
        workers: int,
        metrics: Metrics,
        supervision: Supervision | None,
        check: SelfCheck | None = None,
        has_room: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Get the port of each worker from `spawn`, by its index.

        Without `supervision`, workers are not restarted. With `check`, a worker gets no job before
        it has passed the check, and is checked again while it is idle. `has_room` is as in
        `Renewal`.
        """
        self._metrics, self._supervision = metrics, supervision
        members = self._members = Members(workers, metrics, come_back=supervision is not None)
        jobs = self._jobs = PendingJobs(members, metrics)
        launcher = self._launcher = Launcher(spawn, self._on, members, metrics)
        self._checks = WorkerChecks(check, supervision, jobs) if check else None
        self._renewal = (
            Renewal(members, jobs, launcher, supervision, has_room, metrics) if supervision else None
        )
        self._served: asyncio.Future[ServedModel] | None = None
        self._load_error: BaseException | None = None
        metrics.gateway.occupancy = jobs.occupancy

    async def start(self) -> ServedModel:
        """Wait until a first worker is up. Raises what loading raised if none can be loaded."""
        self._served = asyncio.get_running_loop().create_future()
        for member in self._members.all:
            self._launcher.launch(member)
        served = await asyncio.shield(self._served)  # not cancelled with this call
        # Workers that failed before a first one was up are not restarted yet.
        for member in self._members.all:
            if member.state == "down" and not member.restarting:
                self._restart_later(member)
        if self._supervision is not None:
            self._launcher.start_task(self._supervise(self._supervision))
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
        return await self._placing().run(job, None, tenant, deadline, on_progress)

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
        return await self._placing().run(job, adapter, tenant, deadline, on_progress)

    def _placing(self) -> PendingJobs:
        """Return the owner of the jobs. Raises `RuntimeError` before `start` has returned."""
        if self._served is None or not self._served.done():
            raise RuntimeError("the executor was not started")
        return self._jobs

    def workers(self) -> Sequence[WorkerStatus]:
        """See `Executor.workers`."""
        return self._members.status()

    async def restart(self) -> None:
        """See `Executor.restart`."""
        if self._renewal is None:
            log.warning("the worker in the server's own process cannot be started again")
            return
        await self._renewal.restart_all()

    async def close(self) -> None:
        """Drop all jobs and end the workers."""
        self._members.closing = True
        self._launcher.cancel_tasks()
        self._jobs.cancel_all()
        ports = [member.port for member in self._members.all if member.port is not None]
        for member in self._members.all:
            self._members.set_state(member, "down")
        await asyncio.gather(*(asyncio.to_thread(port.close) for port in ports))

    def _on(self, member: Member, port: Port | None, event: Event) -> None:
        if member.port is not port:  # the worker was restarted meanwhile
            return
        member.silent_beats = 0
        match event:
            case Ready(served):
                self._on_ready(member, served)
            case Beat():
                self._on_beat(member, event)
            case Began(job_id):
                self._jobs.on_began(member, job_id)
            case UnitRan():
                self._metrics.record_unit(event.lane, event.runs, event.tokens, event.seconds)
            case Advanced(job_id, partial):
                self._jobs.on_progress(member, job_id, partial)
            case Done():
                self._jobs.on_done(member, event)
                if self._renewal is not None:
                    self._renewal.renew_outgrown(member)
            case Failed(job_id, error):
                self._jobs.on_failed(member, job_id, error)
            case Ended(error):
                self._on_ended(member, error)

    def _on_beat(self, member: Member, beat: Beat) -> None:
        member.memory_bytes = beat.memory_bytes
        if beat.memory_bytes is not None:
            self._metrics.worker_memory_bytes.labels(member.name).set(beat.memory_bytes)
        if beat.gpu_bytes is not None:
            self._metrics.worker_gpu_memory_bytes.labels(member.name).set(beat.gpu_bytes)
        if self._renewal is not None:
            self._renewal.renew_outgrown(member)
        if self._supervision is not None and self._supervision.hangs(beat.busy_seconds, beat.unit_size):
            self._members.fence(member, "hung", f"hangs in a unit for {beat.busy_seconds:.0f} s")

    # ---- start and loss of workers

    def _on_ready(self, member: Member, served: ServedModel) -> None:
        assert self._served is not None and member.port is not None
        if self._served.done() and self._served.result().identity != served.identity:
            log.error("worker %s loaded another model than the server started with", member.name)
            member.port.kill()
            return
        member.served = served
        if self._checks is not None:
            self._launcher.start_task(self._check(member, self._checks))
            return
        self._take_up(member, served)

    async def _check(self, member: Member, checks: WorkerChecks) -> None:
        """Check a worker, and end it where it fails. One that starts gets jobs once it has passed."""
        try:
            fault = await checks.fault_of(member)
        except WorkerLostError:
            return  # it has ended, and is started again
        if fault is not None:
            if fault.reason == "wrong":
                self._load_error = self._load_error or RuntimeError(f"the worker {fault.what}")
            self._members.fence(member, fault.reason, fault.what)
        elif member.state == "starting" and member.served is not None:
            self._take_up(member, member.served)

    def _take_up(self, member: Member, served: ServedModel) -> None:
        """Give jobs to a worker from now on."""
        assert self._served is not None
        self._members.set_state(member, "up")
        member.tentative = False
        member.up_since = member.checked = time.monotonic()
        if not self._served.done():
            self._served.set_result(served)
        self._jobs.place_waiting()

    def _on_ended(self, member: Member, error: BaseException | None) -> None:
        assert self._served is not None
        was_up = member.state in ("up", "draining")
        member.port, member.held = None, frozenset()
        self._members.set_state(member, "down")
        if self._members.closing:
            return
        if member.tentative:  # the one that is up stays
            self._members.all.remove(member)
            log.error("the next worker %s could not be started: %r", member.name, error)
            return
        if member.leaving and self._renewal is not None:
            self._renewal.on_left(member)
            return
        if was_up and self._supervision is not None:
            stable = self._supervision.is_stable(time.monotonic() - member.up_since)
            member.losses = 0 if stable else member.losses
        member.losses += 1
        self._load_error = self._load_error or error or RuntimeError("the worker ended while it loaded")
        if not self._served.done() and all(other.state == "down" for other in self._members.all):
            self._served.set_exception(self._load_error)  # `start` raises it
            return
        log.error("worker %s %s: %r", member.name, "was lost" if was_up else "could not be loaded", error)
        if self._served.done():
            self._restart_later(member)
        self._jobs.move_from(member, lost=True)

    def _restart_later(self, member: Member) -> None:
        if self._supervision is not None and not self._members.closing:
            self._launcher.launch_later(member, self._supervision.wait_seconds(max(1, member.losses)))

    async def _supervise(self, supervision: Supervision) -> None:
        """Kill workers whose heartbeats do not come, and check those that are idle.

        Heartbeats are counted, not timed: if this process was stopped for a while itself, no worker
        is to blame.
        """
        while True:
            await asyncio.sleep(supervision.heartbeat_seconds)
            for member in self._members.all:
                # A worker that loads sends no heartbeats, since imports hold the interpreter long.
                if member.state not in ("up", "draining") or member.port is None:
                    continue
                member.silent_beats += 1
                if supervision.is_silent(member.silent_beats):
                    self._members.fence(member, "silent", "is silent")
                elif self._checks is not None and self._checks.is_due(member):
                    self._launcher.start_task(self._check(member, self._checks))
