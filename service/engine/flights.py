"""Work that several equal requests wait for together."""

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
    """The work of one key, and the number of callers that wait for it."""

    task: asyncio.Task[T]
    waiters: int = 0


class Flights(Generic[T]):
    """Runs the work of each key at most once at a time. Used from one event loop.

    Work is cancelled when its last caller stops waiting: at once if the caller left, after
    `grace_seconds` if its deadline passed, since the answer to that asks it to try again.
    """

    def __init__(self, what: str, grace_seconds: float) -> None:
        self._what, self._grace_seconds = what, grace_seconds
        self._flights: dict[Hashable, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    @property
    def waiters(self) -> int:
        """Return the number of callers that wait, over all keys."""
        return sum(flight.waiters for flight in self._flights.values())

    async def join(
        self, key: Hashable, make: Callable[[], Awaitable[T]], is_late: Callable[[], bool]
    ) -> tuple[T, bool]:
        """Return the result of `make`, and whether it had begun already.

        `is_late` is called if the caller is cancelled, and says whether its deadline has passed.
        """
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = _Flight(asyncio.ensure_future(_awaited(make)))
            self._flights[key] = flight
            flight.task.add_done_callback(partial(self._on_ended, key, flight))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task), joined
        finally:
            flight.waiters -= 1
            if not flight.task.done():
                grace = self._grace_seconds if is_late() else 0.0
                asyncio.get_running_loop().call_later(grace, self._cancel_unless_awaited, key, flight)

    async def settle(self) -> None:
        """Wait until all work has ended."""
        while self._flights:
            await asyncio.wait([flight.task for flight in self._flights.values()])

    async def close(self) -> None:
        """Cancel all work."""
        for flight in self._flights.values():
            flight.task.cancel()
        await self.settle()

    def _cancel_unless_awaited(self, key: Hashable, flight: _Flight[T]) -> None:
        """Cancel work that no caller waits for. Later callers begin it anew."""
        if not flight.waiters and self._flights.get(key) is flight:
            del self._flights[key]
            flight.task.cancel()

    def _on_ended(self, key: Hashable, flight: _Flight[T], task: asyncio.Task[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        # Read the error here: if no caller waits any more, nothing else reads it.
        if not task.cancelled() and task.exception() is not None:
            log.warning("%s %s was not made: %s", self._what, key, task.exception())


async def _awaited(make: Callable[[], Awaitable[T]]) -> T:
    return await make()
