"""How far one request has come: written by the engine, read by whoever streams its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.engine.answers import Obtained
    from service.executors.contract import Losses
    from service.gating.decisions import DecidedPrediction


@dataclass(frozen=True)
class Progress:
    """What is known of a request. Once it is `admitted`, nothing about it will be refused any more.

    `losses` are those of `steps` gradient steps so far, if this request has its adapter made;
    `obtained` is the adapter. `predictions` are decided on the samples so far, None where there is no
    sample yet; they go back to that where they are done anew.
    """

    admitted: bool = False
    losses: Losses = ()
    steps: int = 0
    obtained: Obtained | None = None
    predictions: Sequence[DecidedPrediction | None] = ()


class ProgressFeed:
    """The latest progress of a request, never a queue: a slow reader misses what was overtaken. For one event loop."""

    def __init__(self) -> None:
        self._latest = Progress()
        self._changed = asyncio.Event()

    @property
    def latest(self) -> Progress:
        """What is known now."""
        return self._latest

    def admit(self) -> None:
        """The request is accepted."""
        self._become(replace(self._latest, admitted=True))

    def adapt(self, losses: Losses, steps: int) -> None:
        """So many of `steps` are made."""
        self._become(replace(self._latest, losses=losses, steps=steps))

    def obtain(self, obtained: Obtained) -> None:
        """The adapter is there."""
        self._become(replace(self._latest, obtained=obtained))

    def refine(self, predictions: Sequence[DecidedPrediction | None]) -> None:
        """So much is known of the predictions."""
        self._become(replace(self._latest, predictions=predictions))

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

    def _become(self, progress: Progress) -> None:
        self._latest = progress
        self.wake()
