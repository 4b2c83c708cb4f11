"""Chooses the jobs of the next unit: lanes share time, tenants share a lane, jobs take turns.

Jobs in the background run where no others are ready.

There are no clocks and no threads here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Container, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

from service.executors.contract import LANES, Lane, is_background

K = TypeVar("K", bound=Hashable)


class FairQueue(Generic[K]):
    """Orders keys by what they have used, relative to their shares (start-time fair queueing).

    A key that enters starts level with the key served last: while it was away it saved up nothing,
    and what it used too much stays counted.
    """

    def __init__(self, shares: Mapping[K, float] | None = None) -> None:
        """Use `shares` as weights; other keys have weight 1."""
        self._shares = shares or {}
        self._used: dict[K, float] = {}
        self._present: dict[K, None] = {}
        self._level = 0.0

    def enter(self, key: K) -> None:
        """Let `key` be served until it leaves."""
        if key in self._present:
            return
        self._used = {k: used for k, used in self._used.items() if k in self._present or used > self._level}
        self._used.setdefault(key, self._level)
        self._present[key] = None

    def leave(self, key: K) -> None:
        """Let `key` not be served any more."""
        self._present.pop(key, None)

    def __iter__(self) -> Iterator[K]:
        """Yield the present keys, the next one to be served first.

        Of equal ones, the one that was served longest ago comes first.
        """
        return iter(sorted(self._present, key=self._used.__getitem__))

    def charge(self, key: K, cost: float) -> None:
        """Count `cost` as used by `key`."""
        used = self._used.get(key, self._level)
        self._level = max(self._level, used)
        self._used[key] = used + cost / self._shares.get(key, 1.0)
        if key in self._present:
            del self._present[key]
            self._present[key] = None


class LaneScheduler:
    """Chooses among jobs by lane and tenant.

    Lanes share measured seconds, tenants share tokens, and the jobs of a tenant take turns.
    """

    def __init__(self, adapt_share: float) -> None:
        """Give adaptations `adapt_share` of the time, in (0, 1), while both lanes have work."""
        self._lanes: FairQueue[Lane] = FairQueue({"adapt": adapt_share, "predict": 1 - adapt_share})
        self._tenants: dict[Lane, FairQueue[str]] = {lane: FairQueue() for lane in LANES}
        self._jobs: dict[tuple[Lane, str], deque[int]] = {}
        self._place: dict[int, tuple[Lane, str]] = {}

    def add(self, job_id: int, lane: Lane, tenant: str) -> None:
        """Give the job units until it is removed."""
        self._place[job_id] = lane, tenant
        self._jobs.setdefault((lane, tenant), deque()).append(job_id)
        self._tenants[lane].enter(tenant)
        self._lanes.enter(lane)

    def remove(self, job_id: int) -> None:
        """Give the job no more units."""
        lane, tenant = place = self._place.pop(job_id)
        self._jobs[place].remove(job_id)
        if not self._jobs[place]:
            del self._jobs[place]
            self._tenants[lane].leave(tenant)
        if not any(busy == lane for busy, _ in self._jobs):
            self._lanes.leave(lane)

    def lane(self) -> Lane | None:
        """Return the lane of the next unit; None where there is no job."""
        return next(iter(self._lanes), None)

    def next(
        self, lane: Lane, taken: Container[int], ready: Callable[[int], bool] = lambda _: True
    ) -> int | None:
        """Return the next job of the unit, of those `ready` and not `taken`; None where there is
        none.

        A job that is not ready keeps its place before those of its tenant that came later.
        """
        for tenant in self._tenants[lane]:
            for job_id in self._jobs[lane, tenant]:
                if job_id not in taken and ready(job_id):
                    return job_id
        return None

    def take(self, job_id: int, tokens: int) -> None:
        """Count the job's tokens in the unit, and move it to the end of its queue."""
        lane, tenant = place = self._place[job_id]
        jobs = self._jobs[place]
        jobs.remove(job_id)
        jobs.append(job_id)
        self._tenants[lane].charge(tenant, tokens)

    def charge(self, lane: Lane, seconds: float) -> None:
        """Count the time of a unit of the lane."""
        self._lanes.charge(lane, seconds)


class LevelScheduler:
    """Chooses among jobs by level, and in a level as `LaneScheduler`.

    Jobs in the background (`contract.is_background`) are never in a unit with others, and lanes and
    tenants owe nothing for them.
    """

    def __init__(self, adapt_share: float) -> None:
        """Give adaptations `adapt_share` of a level's time, in (0, 1), while both lanes have work."""
        self._usual, self._background = LaneScheduler(adapt_share), LaneScheduler(adapt_share)
        self._level: dict[int, LaneScheduler] = {}
        self._charged = self._usual

    def add(self, job_id: int, lane: Lane, tenant: str) -> None:
        """Give the job units until it is removed."""
        level = self._level[job_id] = self._background if is_background(tenant) else self._usual
        level.add(job_id, lane, tenant)

    def remove(self, job_id: int) -> None:
        """Give the job no more units."""
        self._level.pop(job_id).remove(job_id)

    def lane(self) -> Lane | None:
        """Return the lane of the next unit; None where there is no job."""
        return self._usual.lane() or self._background.lane()

    def next(
        self, lane: Lane, taken: Collection[int], ready: Callable[[int], bool] = lambda _: True
    ) -> int | None:
        """Return the next job of the unit: see `LaneScheduler.next`.

        Where the usual jobs of the lane wait for what those in the background hold, these go on.
        """
        levels = [self._level[next(iter(taken))]] if taken else [self._usual, self._background]
        found = (level.next(lane, taken, ready) for level in levels)
        return next((job_id for job_id in found if job_id is not None), None)

    def take(self, job_id: int, tokens: int) -> None:
        """Count the job's tokens in the unit, and move it to the end of its queue."""
        self._charged = self._level[job_id]
        self._charged.take(job_id, tokens)

    def charge(self, lane: Lane, seconds: float) -> None:
        """Count the time of a unit of the lane, in the level of the jobs that were taken for it."""
        self._charged.charge(lane, seconds)
        self._charged = self._usual
