"""The workers of a pool and the jobs that it gave them, as records; `Members` owns the workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.executors.contract import Job, ServedModel, Timed, WorkerState, WorkerStatus
from service.executors.ports import Port
from service.metrics import Metrics

if TYPE_CHECKING:
    from abmll.posterior.posteriors import TaskPosterior

log = logging.getLogger(__name__)


@dataclass(eq=False)
class PendingJob:
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
class Member:
    """One worker of the pool, through all restarts."""

    name: str
    state: WorkerState = "down"
    port: Port | None = None
    pending: dict[int, PendingJob] = field(default_factory=dict)
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
    tentative: bool = False
    """Begun beside the one whose place it takes once it is up; that one has `successor` set."""
    successor: Member | None = None
    checked: float = 0.0
    checking: bool = False
    slow_checks: int = 0


class Members:
    """Owns which workers a pool has and the state of each."""

    def __init__(self, count: int, metrics: Metrics, *, come_back: bool) -> None:
        """Begin with workers that are down; `come_back` says that lost ones are started again."""
        self.all = [Member(str(index)) for index in range(count)]
        self.closing = False
        self._metrics, self._come_back = metrics, come_back

    @property
    def come_back(self) -> bool:
        """Whether a worker that is lost now is started again."""
        return self._come_back and not self.closing

    def status(self) -> Sequence[WorkerStatus]:
        """Return the status of every worker, in a fixed order."""
        return [WorkerStatus(m.name, m.state, m.restarts, len(m.pending), m.memory_bytes) for m in self.all]

    def is_up(self, name: str) -> bool:
        """Return whether a worker of this name is up."""
        return any(member.state == "up" for member in self.all if member.name == name)

    def is_the_only_one_of_several(self, member: Member) -> bool:
        """Return whether there are other workers, and none of them is up."""
        others = [other for other in self.all if other is not member]
        return bool(others) and not any(other.state == "up" for other in others) and not self.closing

    def set_state(self, member: Member, state: WorkerState) -> None:
        """Note the state of a worker, for the metrics too."""
        member.state = state
        self._metrics.worker_up.labels(member.name).set(self.is_up(member.name))

    def fence(self, member: Member, reason: str, what: str) -> None:
        """End a worker at once. Its jobs move to others, and it is started again."""
        log.error("worker %s %s: killed", member.name, what)
        self._metrics.fenced.labels(reason).inc()
        if member.port is not None:
            member.port.kill()
