"""Work under way, each piece at most once: whoever asks for the same meanwhile joins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(eq=False)
class _Flight(Generic[T]):
    """One key's work, and how many wait for it."""

    task: asyncio.Task[T]
    waiters: int = 0


class Flights(Generic[T]):
    """Used from one event loop. When the last who waits for a piece of work has left, it is cancelled.

    At once if they went away; after `grace_seconds` if their time was up, for then they were told to come back for it.
    """

    def __init__(self, what: str, grace_seconds: float) -> None:
        self._what, self._grace_seconds = what, grace_seconds
        self._flights: dict[Hashable, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def waiters(self) -> int:
        """Callers that wait, over all pieces of work."""
        return sum(flight.waiters for flight in self._flights.values())

    async def join(
        self, key: Hashable, make: Callable[[], Awaitable[T]], is_late: Callable[[], bool]
    ) -> tuple[T, bool]:
        """The result of `make`, and whether it was under way already.

        `is_late` says, when this is cancelled, whether that is because the caller's time is up.
        """
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = _Flight(asyncio.ensure_future(_awaited(make)))
            self._flights[key] = flight
            flight.task.add_done_callback(partial(self._landed, key, flight))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task), joined
        finally:
            flight.waiters -= 1
            if not flight.task.done():
                grace = self._grace_seconds if is_late() else 0.0
                asyncio.get_running_loop().call_later(grace, self._give_up, key, flight)

    async def settle(self) -> None:
        """Wait until all work under way has ended."""
        while self._flights:
            await asyncio.wait([flight.task for flight in self._flights.values()])

    async def close(self) -> None:
        """Give up what is under way."""
        for flight in self._flights.values():
            flight.task.cancel()
        await self.settle()

    def _give_up(self, key: Hashable, flight: _Flight[T]) -> None:
        """Cancel what nobody waits for. Who asks from now on begins anew."""
        if not flight.waiters and self._flights.get(key) is flight:
            del self._flights[key]
            flight.task.cancel()

    def _landed(self, key: Hashable, flight: _Flight[T], task: asyncio.Task[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not task.cancelled() and task.exception() is not None:  # every waiter may have left
            log.warning("%s %s was not made: %s", self._what, key, task.exception())


async def _awaited(make: Callable[[], Awaitable[T]]) -> T:
    return await make()
