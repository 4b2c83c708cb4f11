"""What one request has come to while it is in work: written by the engine, read by whoever tells the caller of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.engine.engine import Obtained
    from service.executors.contract import Losses, Partial
    from service.gating.confidence import Judge


@dataclass(frozen=True)
class Known:
    """What is known of a request. Once it is `admitted`, nothing about it will be refused any more.

    `losses` are those of `steps` gradient steps so far, if this request has its adapter made; `obtained` is the adapter, and
    `judge` gives confidences from then on.
    `partial` is of the predictions, and goes back where they are done anew.
    """

    admitted: bool = False
    losses: Losses = ()
    steps: int = 0
    obtained: Obtained | None = None
    judge: Judge | None = None
    partial: Partial = ()


class Watch:
    """The latest that is known of a request, never a queue: a slow reader misses what was overtaken. For one event loop."""

    def __init__(self) -> None:
        self._known = Known()
        self._changed = asyncio.Event()

    @property
    def known(self) -> Known:
        """The latest."""
        return self._known

    def admit(self) -> None:
        """The request is accepted."""
        self._become(replace(self._known, admitted=True))

    def adapt(self, losses: Losses, steps: int) -> None:
        """So many of `steps` are made."""
        self._become(replace(self._known, losses=losses, steps=steps))

    def obtain(self, obtained: Obtained, judge: Judge) -> None:
        """The adapter is there."""
        self._become(replace(self._known, obtained=obtained, judge=judge))

    def refine(self, partial: Partial) -> None:
        """So much is known of the predictions."""
        self._become(replace(self._known, partial=partial))

    def wake(self) -> None:
        """Have the reader look, for a reason of its own."""
        self._changed.set()

    async def changed(self, within_seconds: float | None = None) -> bool:
        """Wait for what has changed since the last wait; False if nothing does in time."""
        try:
            async with asyncio.timeout(within_seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def _become(self, known: Known) -> None:
        self._known = known
        self.wake()
