"""The executor: places jobs on workers, and sees to it that a lost worker loses nothing. Lives on the event loop.

How a worker is reached is its `Port`'s matter: a thread (`inline.py`) or a process (`process.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from service.errors import DeadlineExceededError, WorkerLostError
from service.executors.contract import (
    EVERYBODY,
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
    Beat,
    Began,
    Cancel,
    Command,
    Done,
    Ended,
    Event,
    Failed,
    Progress,
    Ready,
    Submit,
    UnitRan,
)
from service.executors.placement import place
from service.metrics import Metrics

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.posterior.posteriors import TaskPosterior
    from abmll.prediction.run import Prediction

log = logging.getLogger(__name__)

SILENT_BEATS = 10  # a worker that misses so many heartbeats is lost


class Port(Protocol):
    """The way to one worker, for one life of it."""

    def start(self, emit: Callable[[Event], None]) -> None:
        """Load the worker; `emit` is called from any thread."""

    def send(self, command: Command) -> None:
        """Pass a command on, without waiting."""

    def kill(self) -> None:
        """End the worker, whatever it is doing; `Ended` follows."""

    def close(self) -> None:
        """End the worker gently, and wait for that a short while. Blocks."""


@dataclass(frozen=True)
class Supervision:
    """How workers are watched and brought back. The wait before a restart doubles with every loss, up to the longest."""

    heartbeat_seconds: float = 1.0
    hang_seconds: float = 120.0
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 30.0
    stable_seconds: float = 60.0

    def wait_seconds(self, losses: int) -> float:
        """How long to wait after so many losses (from 1) without a stable time between them."""
        return float(min(self.longest_wait_seconds, self.first_wait_seconds * 2 ** min(losses - 1, 30)))


@dataclass(eq=False)
class _Flight:
    """A job that somebody awaits, and the adapter that it names, so that another worker can take over."""

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


@dataclass(eq=False)
class _Member:
    """One place for a worker, through all its lives."""

    name: str
    state: WorkerState = "down"
    port: Port | None = None
    flights: dict[int, _Flight] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    restarts: int = 0
    losses: int = 0
    up_since: float = 0.0
    silent_beats: int = 0
    returning: bool = False


class WorkerPool:
    """An `Executor` over workers that are reached by ports."""

    def __init__(
        self, spawn: Callable[[int], Port], workers: int, metrics: Metrics, supervision: Supervision | None
    ) -> None:
        """`spawn` makes the port of the worker of that index. Without `supervision`, a worker that ends stays away."""
        self._spawn, self._metrics, self._supervision = spawn, metrics, supervision
        self._members = [_Member(str(index)) for index in range(workers)]
        self._flights: dict[int, _Flight] = {}
        self._homeless: dict[int, _Flight] = {}  # while no worker is up
        self._ids = itertools.count()
        self._served: asyncio.Future[ServedModel] | None = None
        self._load_error: BaseException | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self) -> ServedModel:
        """Return when a first worker is up; raises what loading raised if none can be loaded."""
        self._served = asyncio.get_running_loop().create_future()
        for member in self._members:
            self._launch(member)
        served = await asyncio.shield(self._served)  # it outlives a start that is given up
        for member in self._members:  # those that failed while nobody knew whether any would come up
            if member.state == "down" and not member.returning:
                self._bring_back(member)
        if self._supervision is not None:
            self._do(self._watch(self._supervision))
        return served

    async def adapt(
        self,
        job: AdaptJob,
        *,
        tenant: str = EVERYBODY,
        deadline: float | None = None,
        on_progress: Callable[[Losses], None] | None = None,
    ) -> Timed[Adaptation]:
        """See `Executor.adapt`."""
        return await self._run(job, None, tenant, deadline, on_progress)

    async def predict(
        self,
        job: PredictJob,
        adapter: TaskPosterior,
        *,
        tenant: str = EVERYBODY,
        deadline: float | None = None,
        on_progress: Callable[[Partial], None] | None = None,
    ) -> Timed[Sequence[Prediction]]:
        """See `Executor.predict`."""
        return await self._run(job, adapter, tenant, deadline, on_progress)

    def workers(self) -> Sequence[WorkerStatus]:
        """See `Executor.workers`."""
        return [WorkerStatus(m.name, m.state, m.restarts, len(m.flights)) for m in self._members]

    async def close(self) -> None:
        """Drop all jobs and let go of the workers."""
        self._closing = True
        for chore in self._chores:
            chore.cancel()
        for flight in list(self._flights.values()):
            flight.answer.cancel()
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
        flight = _Flight(next(self._ids), job, adapter, tenant, until, answer, now, on_progress)
        self._flights[flight.id] = flight
        lane = self._metrics.lane_jobs.labels(lane_of(job))
        lane.inc()
        try:
            self._place(flight)
            async with asyncio.timeout(deadline) as timeout:
                return await answer
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise DeadlineExceededError("the job was not done in time") from error
        finally:
            lane.dec()
            self._forget(flight)

    def _place(self, flight: _Flight) -> None:
        up = {member.name: member for member in self._members if member.state == "up"}
        if up:
            chosen = place(flight.job.adapter_id, {name: len(member.flights) for name, member in up.items()})
            self._send(up[chosen], flight)
        elif self._supervision is not None and not self._closing:
            self._homeless[flight.id] = flight
        else:
            self._fail(flight, WorkerLostError("the worker was lost"))

    def _send(self, member: _Member, flight: _Flight, *, with_adapter: bool = False) -> None:
        """Hand the job to the worker, and the adapter if the worker is not known to hold it or `with_adapter`."""
        assert member.port is not None
        now = time.monotonic()
        flight.began, flight.waited = False, now - flight.submitted
        flight.with_adapter = with_adapter or flight.job.adapter_id not in member.held
        adapter = flight.adapter if flight.with_adapter else None
        member.flights[flight.id] = flight
        left = None if flight.deadline is None else flight.deadline - now
        member.port.send(
            Submit(flight.id, flight.job, adapter, flight.tenant, left, flight.on_progress is not None)
        )

    def _forget(self, flight: _Flight) -> None:
        """The awaiter has its answer, or has left: then the worker need not go on."""
        self._flights.pop(flight.id, None)
        self._homeless.pop(flight.id, None)
        for member in self._members:
            if member.flights.pop(flight.id, None) is not None and member.port is not None:
                member.port.send(Cancel(flight.id))

    def _fail(self, flight: _Flight, error: BaseException) -> None:
        if not flight.answer.done():
            flight.answer.set_exception(error)

    # ---- what workers tell

    def _on(self, member: _Member, port: Port, event: Event) -> None:
        if member.port is not port:  # of a life that is over
            return
        member.silent_beats = 0
        match event:
            case Ready(served):
                self._up(member, served)
            case Beat(busy_seconds):
                if self._supervision is not None and busy_seconds > self._supervision.hang_seconds:
                    log.error("worker %s hangs in a unit for %.0f s: killed", member.name, busy_seconds)
                    port.kill()
            case Began(job_id):
                if job_id in member.flights:
                    member.flights[job_id].began = True
            case UnitRan():
                self._metrics.record_unit(event.lane, event.runs, event.tokens, event.seconds)
            case Progress(job_id, partial):
                self._on_progress(member, job_id, partial)
            case Done(job_id, result, queue_seconds, run_seconds, held):
                member.held = frozenset(held)
                if (flight := member.flights.pop(job_id, None)) and not flight.answer.done():
                    flight.answer.set_result(Timed(result, flight.waited + queue_seconds, run_seconds))
            case Failed(job_id, error):
                self._on_failed(member, job_id, error)
            case Ended(error):
                self._on_ended(member, error)

    def _on_progress(self, member: _Member, job_id: int, partial: Losses | Partial) -> None:
        flight = member.flights.get(job_id)
        if flight is not None and flight.on_progress is not None and not flight.answer.done():
            flight.on_progress(partial)

    def _on_failed(self, member: _Member, job_id: int, error: Exception) -> None:
        flight = member.flights.pop(job_id, None)
        if flight is None:
            return
        if isinstance(error, AdapterNotHeldError):
            member.held -= {error.adapter_id}
            if not flight.with_adapter:
                self._send(member, flight, with_adapter=True)
                return
        self._fail(flight, error)

    # ---- lives of workers

    def _launch(self, member: _Member) -> None:
        loop = asyncio.get_running_loop()
        port = member.port = self._spawn(int(member.name))
        self._set_state(member, "starting")
        member.silent_beats, member.held, member.returning = 0, frozenset(), False

        def emit(event: Event) -> None:
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._on, member, port, event)

        port.start(emit)

    def _up(self, member: _Member, served: ServedModel) -> None:
        assert self._served is not None and member.port is not None
        if self._served.done() and self._served.result().deciding != served.deciding:
            log.error("worker %s loaded another model than the server started with", member.name)
            member.port.kill()
            return
        self._set_state(member, "up")
        member.up_since = time.monotonic()
        if not self._served.done():
            self._served.set_result(served)
        for flight in list(self._homeless.values()):
            del self._homeless[flight.id]
            self._place(flight)

    def _on_ended(self, member: _Member, error: BaseException | None) -> None:
        assert self._served is not None
        was_up = member.state == "up"
        member.port, member.held = None, frozenset()
        self._set_state(member, "down")
        if self._closing:
            return
        if was_up and self._supervision is not None:
            stable = time.monotonic() - member.up_since >= self._supervision.stable_seconds
            member.losses = 0 if stable else member.losses
        member.losses += 1
        self._load_error = self._load_error or error or RuntimeError("the worker ended while it loaded")
        if not self._served.done() and all(other.state == "down" for other in self._members):
            self._served.set_exception(self._load_error)  # `start` tells
            return
        log.error("worker %s %s: %r", member.name, "was lost" if was_up else "could not be loaded", error)
        if self._served.done():
            self._bring_back(member)
        flights, member.flights = member.flights, {}
        for flight in flights.values():
            self._recover(flight)

    def _recover(self, flight: _Flight) -> None:
        """Place the flight anew. One that was in work may have been the cause, so that is done once."""
        if flight.began and flight.replayed:
            self._fail(flight, WorkerLostError("two workers were lost while they worked on this"))
            return
        if flight.began:
            flight.replayed = True
            self._metrics.replays.inc()
        self._place(flight)

    def _bring_back(self, member: _Member) -> None:
        if self._supervision is None or self._closing:
            return
        member.returning = True
        self._do(self._relaunch(member, self._supervision.wait_seconds(max(1, member.losses))))

    async def _relaunch(self, member: _Member, wait_seconds: float) -> None:
        await asyncio.sleep(wait_seconds)
        member.restarts += 1
        self._metrics.worker_restarts.labels(member.name).inc()
        try:
            self._launch(member)
        except OSError as error:  # no pipe to be had
            self._on_ended(member, error)

    async def _watch(self, supervision: Supervision) -> None:
        """Count beats that do not come. In counts, not by the clock: a server that was stopped itself blames nobody."""
        while True:
            await asyncio.sleep(supervision.heartbeat_seconds)
            for member in self._members:
                # Imports hold the interpreter for long, so a worker that loads is not asked for beats.
                if member.state != "up" or member.port is None:
                    continue
                member.silent_beats += 1
                if member.silent_beats > SILENT_BEATS:
                    log.error("worker %s is silent: killed", member.name)
                    member.port.kill()

    def _set_state(self, member: _Member, state: WorkerState) -> None:
        member.state = state
        self._metrics.worker_up.labels(member.name).set(state == "up")

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
