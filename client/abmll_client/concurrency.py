"""How many requests of one client are at the server at a time.

A server answers a bounded number of requests at a time and refuses the others (429). A client that
sends hundreds at once would be refused, wait, and be refused again, while the server is idle in
between. So a client keeps a window: requests beyond it wait here, and follow as others end. The
window shrinks to what the server took when it refused, and grows again with each answer, as that of
TCP does (Jacobson 1988).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from abmll_client.errors import BusyError

T = TypeVar("T")


class _Window:
    """How many requests may be at the server at a time, and how many are there now.

    A refusal counts for as long as the server asks to wait: other clients may be gone then.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"max_concurrency is at least 1, not {most}")
        self._most, self._size, self._inside = most, float(most), 0
        self._until = 0.0  # when the last refusal no longer counts, on the monotonic clock

    @property
    def free(self) -> int:
        """How many requests may be sent now."""
        if self._size < self._most and time.monotonic() >= self._until:
            self._size = float(self._most)
        return max(0, int(self._size) - self._inside)

    @property
    def seconds_shrunk(self) -> float:
        """Seconds until the last refusal no longer counts."""
        return max(0.0, self._until - time.monotonic())

    def enter(self) -> None:
        self._inside += 1

    def leave(self, busy: BusyError | None) -> bool:
        """Take the end of a request: an answer, or that the server is `busy`.

        Return whether other requests of this client are at the server, so that one that was refused
        can follow them.
        """
        self._inside -= 1
        if busy is None:
            self._size = min(self._most, self._size + 1 / self._size)
        else:
            self._size = float(max(1, min(self._size, self._inside)))
            seconds = 1.0 if busy.retry_after_seconds is None else busy.retry_after_seconds
            self._until = time.monotonic() + min(60.0, seconds)
        return self._inside > 0


class Places:
    """The window of a blocking client; threads share it."""

    def __init__(self, most: int) -> None:
        self._window, self._changed = _Window(most), threading.Condition()

    def run(self, send: Callable[[], T], *, patient: bool) -> T:
        """Call `send` when there is a place.

        Where the server is busy with other requests of this client, it is called again after one of
        them, if `patient`. Raises what it raises.
        """
        answer = self.keep(send, patient=patient)
        self.leave()
        return answer

    def keep(self, send: Callable[[], T], *, patient: bool) -> T:
        """As `run`, for what goes on after `send` has returned: its place is taken until `leave`."""
        while True:
            with self._changed:
                while not self._window.free:
                    self._changed.wait(self._window.seconds_shrunk or None)
                self._window.enter()
            try:
                return send()
            except BusyError as busy:
                if not (self.leave(busy) and patient):
                    raise
            except BaseException:
                self.leave()
                raise

    def leave(self, busy: BusyError | None = None) -> bool:
        """Give a place back, and return whether other requests of this client have one."""
        with self._changed:
            others = self._window.leave(busy)
            self._changed.notify(self._window.free)
        return others


class AsyncPlaces:
    """The window of an asynchronous client, on its event loop."""

    def __init__(self, most: int) -> None:
        self._window = _Window(most)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(self, send: Callable[[], Awaitable[T]], *, patient: bool) -> T:
        """As `Places.run`."""
        answer = await self.keep(send, patient=patient)
        self.leave()
        return answer

    async def keep(self, send: Callable[[], Awaitable[T]], *, patient: bool) -> T:
        """As `Places.keep`."""
        while True:
            await self._enter()
            try:
                return await send()
            except BusyError as busy:
                others = self.leave(busy)
                asyncio.get_running_loop().call_later(self._window.seconds_shrunk, self._wake)
                if not (patient and others):
                    raise
            except BaseException:
                self.leave()
                raise

    def leave(self, busy: BusyError | None = None) -> bool:
        """As `Places.leave`."""
        others = self._window.leave(busy)
        self._wake()
        return others

    async def _enter(self) -> None:
        while not self._window.free:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()  # its turn may be another's
                raise
        self._window.enter()

    def _wake(self) -> None:
        free = self._window.free
        while free and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # it was not cancelled
                turn.set_result(None)
                free -= 1
