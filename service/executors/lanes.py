"""Which jobs are in the next unit: two lanes share the time, tenants share a lane, jobs take turns. No clock, no threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

from service.executors.contract import LANES, Lane

K = TypeVar("K", bound=Hashable)


class FairQueue(Generic[K]):
    """Keys in the order of what they have had, by share (start-time fair queueing).

    A key that comes in starts level with the one served last: who was away has saved up nothing, and owes what it owed.
    """

    def __init__(self, shares: Mapping[K, float] | None = None) -> None:
        """`shares` weigh what a key has had; a key that is not there has share 1."""
        self._shares = shares or {}
        self._had: dict[K, float] = {}
        self._present: dict[K, None] = {}
        self._level = 0.0

    def enter(self, key: K) -> None:
        """`key` wants to be served, from now until it leaves."""
        if key in self._present:
            return
        self._had = {k: had for k, had in self._had.items() if k in self._present or had > self._level}
        self._had.setdefault(key, self._level)
        self._present[key] = None

    def leave(self, key: K) -> None:
        """`key` wants nothing more."""
        self._present.pop(key, None)

    def __iter__(self) -> Iterator[K]:
        """Present keys, the one to be served next first; equals in the order in which they were served last."""
        return iter(sorted(self._present, key=self._had.__getitem__))

    def charge(self, key: K, cost: float) -> None:
        """`key` has been served for `cost`."""
        had = self._had.get(key, self._level)
        self._level = max(self._level, had)
        self._had[key] = had + cost / self._shares.get(key, 1.0)
        if key in self._present:
            del self._present[key]
            self._present[key] = None


class LaneScheduler:
    """Jobs by lane and tenant. Lanes share measured seconds, tenants share tokens, a tenant's jobs take turns unit by unit."""

    def __init__(self, adapt_share: float) -> None:
        """`adapt_share` (0 to 1, exclusive) of the time goes to adaptations while both lanes have work."""
        self._lanes: FairQueue[Lane] = FairQueue({"adapt": adapt_share, "predict": 1 - adapt_share})
        self._tenants: dict[Lane, FairQueue[str]] = {lane: FairQueue() for lane in LANES}
        self._jobs: dict[tuple[Lane, str], deque[int]] = {}
        self._place: dict[int, tuple[Lane, str]] = {}

    def add(self, job_id: int, lane: Lane, tenant: str) -> None:
        """The job wants units until it is removed."""
        self._place[job_id] = lane, tenant
        self._jobs.setdefault((lane, tenant), deque()).append(job_id)
        self._tenants[lane].enter(tenant)
        self._lanes.enter(lane)

    def remove(self, job_id: int) -> None:
        """The job wants no more units."""
        lane, tenant = place = self._place.pop(job_id)
        self._jobs[place].remove(job_id)
        if not self._jobs[place]:
            del self._jobs[place]
            self._tenants[lane].leave(tenant)
        if not any(busy == lane for busy, _ in self._jobs):
            self._lanes.leave(lane)

    def lane(self) -> Lane | None:
        """The lane of the next unit; None where there is no job."""
        return next(iter(self._lanes), None)

    def next(self, lane: Lane, taken: Container[int]) -> int | None:
        """The job to put into the unit next, of those that are not `taken`; None where there is none."""
        for tenant in self._tenants[lane]:
            job_id = self._jobs[lane, tenant][0]
            if job_id not in taken:  # those taken stand at the end
                return job_id
        return None

    def take(self, job_id: int, tokens: int) -> None:
        """The job is in the unit, with so many tokens."""
        lane, tenant = place = self._place[job_id]
        jobs = self._jobs[place]
        jobs.remove(job_id)
        jobs.append(job_id)
        self._tenants[lane].charge(tenant, tokens)

    def charge(self, lane: Lane, seconds: float) -> None:
        """A unit of the lane took so long."""
        self._lanes.charge(lane, seconds)
