"""Progress of one request: written by the engine, read by the stream of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abmll.prediction.run import Prediction
    from service.engine.answers import Obtained
    from service.executors.contract import Losses, Partial
    from service.gating.decisions import DecidedPrediction


@dataclass(frozen=True)
class Progress:
    """What is known of a request so far.

    A request that is `admitted` has passed all checks. `losses` are the losses of the gradient
    steps so far, of `steps` in all, if this request has its adapter made. `obtained` is the
    adapter. `predictions` has one entry a query, decided on the samples so far; None where there is
    no sample. A prediction that is done anew, because its worker was lost, becomes None again.
    """

    admitted: bool = False
    losses: Losses = ()
    steps: int = 0
    obtained: Obtained | None = None
    predictions: Sequence[DecidedPrediction | None] = ()


class ProgressFeed:
    """Passes on the latest progress of a request. Used from one event loop.

    It is no queue: a slow reader misses what was replaced meanwhile.
    """

    def __init__(self) -> None:
        self._latest = Progress()
        self._changed = asyncio.Event()

    @property
    def latest(self) -> Progress:
        """Return what is known now."""
        return self._latest

    def set_admitted(self) -> None:
        """Record that the request has passed all checks."""
        self._set(replace(self._latest, admitted=True))

    def set_losses(self, losses: Losses, steps: int) -> None:
        """Record the losses so far, of `steps` in all."""
        self._set(replace(self._latest, losses=losses, steps=steps))

    def set_obtained(self, obtained: Obtained) -> None:
        """Record the adapter."""
        self._set(replace(self._latest, obtained=obtained))

    def set_predictions(self, predictions: Sequence[DecidedPrediction | None]) -> None:
        """Record the predictions so far."""
        self._set(replace(self._latest, predictions=predictions))

    def deciding(self, decided: Callable[[int, Prediction], DecidedPrediction]) -> Callable[[Partial], None]:
        """Return a function that decides partial predictions with `decided` and records them."""

        def record(predictions: Partial) -> None:
            rows = enumerate(predictions)
            self.set_predictions([None if row is None else decided(index, row) for index, row in rows])

        return record

    def wake(self) -> None:
        """End the reader's wait without a change."""
        self._changed.set()

    async def changed(self, within_seconds: float | None = None) -> bool:
        """Wait for a change since the last wait, or for `wake`; return False at a timeout."""
        try:
            async with asyncio.timeout(within_seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def _set(self, progress: Progress) -> None:
        self._latest = progress
        self.wake()
