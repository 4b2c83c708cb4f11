"""The work that waits or runs, in seconds of an idle worker: how much there may be, and for whom."""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.errors import QueueFullError

PRESENT_SECONDS = 60.0
"""How long a tenant that was refused counts as one that has work, so that the others leave it room.
"""
RATE_SECONDS = 60.0
"""The speed at which work is done is measured over about this time."""


@dataclass(eq=False)
class Reservation:
    """The seconds of work that one request has in the backlog, until it ends."""

    backlog: Backlog
    tenant: str
    seconds: float

    def correct(self, seconds: float) -> None:
        """Take the price in place of the estimate.

        Raises `QueueFullError` where it is more, and there is no room for it.
        """
        more = seconds - self.seconds
        if more > 0:
            self.backlog.check(self.tenant, more, own=self.seconds)
        self.backlog.add(self.tenant, more)
        self.seconds = seconds


class Backlog:
    """Counts seconds of work by tenant, and refuses what exceeds `limit_seconds` in all.

    While several tenants have work, each has an equal part of the limit. What comes to an empty
    backlog, or first of its tenant, has room whatever it takes, up to the limit of all. Used from
    one thread. `setting` names the limit in messages, `show` gets the seconds in all.
    """

    def __init__(
        self,
        limit_seconds: float,
        workers: int,
        setting: str,
        show: Callable[[float], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._setting, self._show, self._clock = limit_seconds, setting, show, clock
        self._by_tenant: defaultdict[str, float] = defaultdict(float)
        self._refused: dict[str, float] = {}
        # Seconds of work that were done, and seconds of the clock that they took.
        self._done, self._busy, self._since = workers * RATE_SECONDS, RATE_SECONDS, clock()

    @property
    def seconds(self) -> float:
        """Return the seconds of work in all."""
        return sum(self._by_tenant.values())

    @contextmanager
    def reserve(self, tenant: str, seconds: float) -> Iterator[Reservation]:
        """Count work until the context ends. Raises `QueueFullError` where there is no room for it."""
        self.check(tenant, seconds)
        reservation = Reservation(self, tenant, seconds)
        self.add(tenant, seconds)
        done = False
        try:
            yield reservation
            done = True
        finally:
            self.add(tenant, -reservation.seconds, done=done)

    def check(self, tenant: str, more: float, own: float = 0.0) -> None:
        """Raise `QueueFullError` unless `more` seconds have room.

        `own` are seconds of the same request that are counted already.
        """
        total = self.seconds
        if total <= own or more <= 0:
            return
        now = self._clock()
        self._refused = {name: when for name, when in self._refused.items() if now - when < PRESENT_SECONDS}
        present = {name for name, used in self._by_tenant.items() if used > 0} | {tenant, *self._refused}
        share = self._limit / len(present)
        used = self._by_tenant.get(tenant, 0.0)
        excess = total + more - self._limit
        if used > own:
            excess = max(excess, used + more - share)
        if excess <= 0:
            return
        self._refused[tenant] = now
        # It has no number of other tenants.
        message = (
            f"the request would take about {own + more:.3g} s, and {used:.3g} s of this tenant's work wait or run: "
            f"there is no room now within {self._limit:g} s of all tenants, who have equal parts "
            f"(setting {self._setting})"
        )
        raise QueueFullError(message, None, self._retry_after_seconds(excess))

    def add(self, tenant: str, seconds: float, *, done: bool = False) -> None:
        """Count `seconds` more of a tenant, or less; less because they were `done`."""
        now = self._clock()
        if self._by_tenant:  # the clock of the rate stands while there is no work
            passed = now - self._since
            kept = 0.5 ** (passed / RATE_SECONDS)
            self._done, self._busy = self._done * kept, self._busy * kept + passed
        self._since = now
        if done:
            self._done -= seconds
        self._by_tenant[tenant] += seconds
        if self._by_tenant[tenant] <= 1e-9:
            del self._by_tenant[tenant]
        self._show(self.seconds)

    def _retry_after_seconds(self, excess: float) -> int:
        """Return when so much work will be done, at the speed that was measured; from 1 to 60 s.

        It is drawn at random after it is bounded, so that clients do not all return at once.
        """
        rate = self._done / max(self._busy, 1e-3)
        expected = min(40.0, max(1.0, excess / max(rate, 1e-3)))
        return math.ceil(expected * random.uniform(1.0, 1.5))  # noqa: S311 - no secret
