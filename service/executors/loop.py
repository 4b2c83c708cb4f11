"""The loop of one worker: which jobs it does, one unit at a time.

The loop has no thread and no queue of its own. A transport calls it, and carries commands in and
events out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from service.errors import DeadlineExceededError
from service.executors.contract import Job, Lane, Run, Worker, WorkerFatalError, lane_of
from service.executors.lanes import LevelScheduler
from service.executors.messages import (
    Advanced,
    Began,
    Cancel,
    Command,
    Done,
    Failed,
    LoopEvent,
    Stop,
    Submit,
    UnitRan,
)

if TYPE_CHECKING:
    from abmll.posterior.posteriors import TaskPosterior

log = logging.getLogger(__name__)


@dataclass
class _Entry:
    job: Job
    adapter: TaskPosterior | None
    submitted: float
    deadline: float | None
    progress: bool
    run: Run | None = None
    first_unit: float | None = None
    run_seconds: float = 0.0


class WorkerLoop:
    """Does jobs on one worker. Used from one thread, except `busy_seconds` and `unit_size`."""

    def __init__(
        self, worker: Worker, adapt_share: float = 0.5, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker, self._clock = worker, clock
        self._scheduler = LevelScheduler(adapt_share)
        self._entries: dict[int, _Entry] = {}
        self._busy_since: float | None = None
        self._unit_tokens = 0
        self._adapting: set[int] = set()  # adaptations that are begun

    @property
    def idle(self) -> bool:
        """Return whether there is no job."""
        return not self._entries

    @property
    def busy_seconds(self) -> float:
        """Return how long the worker has been in its current call. Any thread may call this."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    @property
    def unit_size(self) -> float:
        """Return the tokens of the current unit over those of a usual one. Any thread may call
        this.
        """
        return self._unit_tokens / self._worker.tokens_per_unit

    def submit(self, command: Submit) -> None:
        """Add a job."""
        now = self._clock()
        deadline = None if command.seconds_left is None else now + command.seconds_left
        self._entries[command.job_id] = _Entry(command.job, command.adapter, now, deadline, command.progress)
        self._scheduler.add(command.job_id, lane_of(command.job), command.tenant)

    def cancel(self, job_id: int) -> None:
        """Drop a job, if it is there."""
        if job_id in self._entries:
            self._drop(job_id)

    def turn(self) -> Iterator[LoopEvent]:
        """Run one unit, and yield events as they happen. Read it to its end.

        Raises `WorkerFatalError`.
        """
        for late in self._overdue():
            self._drop(late)
            yield Failed(late, DeadlineExceededError("the job was not done in time"))
        lane = self._scheduler.lane()
        if lane is None:
            return
        started = self._clock()
        batch: dict[int, int] = {}
        budget = self._worker.tokens_per_unit
        while sum(batch.values()) < budget:
            job_id = self._scheduler.next(lane, batch, self._ready)
            if job_id is None:
                break
            entry = self._entries[job_id]
            if entry.run is None:
                yield Began(job_id)
                try:
                    with self._busy():
                        entry.run = self._worker.begin(entry.job, entry.adapter)
                    entry.adapter = None  # the run has it
                    if lane == "adapt":
                        self._adapting.add(job_id)
                except WorkerFatalError:
                    raise
                except Exception as error:
                    yield self._failed(job_id, error)
                    continue
            tokens = entry.run.next_tokens()
            if batch and sum(batch.values()) + tokens > budget:
                break  # its tokens are not counted, so it is the first of its lane's next unit
            self._scheduler.take(job_id, tokens)
            batch[job_id] = tokens
        if batch:
            yield from self._advance(lane, batch)
        self._scheduler.charge(lane, self._clock() - started)

    def _advance(self, lane: Lane, batch: Mapping[int, int]) -> Iterator[LoopEvent]:
        entries = {job_id: self._entries[job_id] for job_id in batch}
        started = self._clock()
        for entry in entries.values():
            entry.first_unit = started if entry.first_unit is None else entry.first_unit
        try:
            self._unit_tokens = sum(batch.values())
            with self._busy():
                self._worker.advance([entry.run for entry in entries.values() if entry.run])
        except WorkerFatalError:
            raise
        except Exception as error:
            if len(batch) == 1:
                yield self._failed(next(iter(batch)), error)
                return
            log.warning("a unit of %d runs failed, so each is tried alone: %r", len(batch), error)
            for job_id, tokens in batch.items():
                yield from self._advance(lane, {job_id: tokens})
            return
        seconds, total = self._clock() - started, sum(batch.values())
        yield UnitRan(lane, len(batch), total, seconds)
        for job_id, entry in entries.items():
            entry.run_seconds += seconds * batch[job_id] / total
            if entry.run and entry.run.done:
                yield self._done(job_id, entry, entry.run)
            elif entry.run and entry.progress:
                yield self._progress(job_id, entry.run)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Measure `busy_seconds` of a call of the worker.

        Only of that: carrying events may take long, but is no hang of the worker.
        """
        self._busy_since = self._clock()
        try:
            yield
        finally:
            self._busy_since = None

    def _done(self, job_id: int, entry: _Entry, run: Run) -> Done | Failed:
        try:
            result = run.result()
        except Exception as error:
            return self._failed(job_id, error)
        self._drop(job_id)
        started = entry.submitted if entry.first_unit is None else entry.first_unit
        held = tuple(self._worker.held())
        return Done(job_id, result, started - entry.submitted, entry.run_seconds, held)

    def _progress(self, job_id: int, run: Run) -> Advanced | Failed:
        try:
            return Advanced(job_id, run.partial())
        except Exception as error:
            return self._failed(job_id, error)

    def _failed(self, job_id: int, error: Exception) -> Failed:
        self._drop(job_id)
        return Failed(job_id, error)

    def _ready(self, job_id: int) -> bool:
        """Return whether the job has begun or may begin: adaptations hold memory until they end."""
        entry = self._entries[job_id]
        if entry.run is not None or lane_of(entry.job) != "adapt":
            return True
        return len(self._adapting) < self._worker.adaptations_at_once

    def _drop(self, job_id: int) -> None:
        entry = self._entries.pop(job_id)
        self._adapting.discard(job_id)
        self._scheduler.remove(job_id)
        if entry.run is not None:
            self._worker.finish(entry.run)

    def _overdue(self) -> list[int]:
        now = self._clock()
        return [
            id for id, entry in self._entries.items() if entry.deadline is not None and now >= entry.deadline
        ]


def drive(loop: WorkerLoop, commands: SimpleQueue[Command]) -> Iterator[LoopEvent]:
    """Run `loop` until `Stop`, and yield its events.

    All commands that have come are taken before each unit. Without jobs, wait for a command.
    """
    while True:
        while loop.idle or not commands.empty():
            match commands.get():
                case Submit() as submit:
                    loop.submit(submit)
                case Cancel(job_id):
                    loop.cancel(job_id)
                case Stop():
                    return
        yield from loop.turn()
