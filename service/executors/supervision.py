"""When a worker counts as hung or silent, and how long to wait before it is restarted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Supervision:
    """Rules for finding lost workers and restarting them.

    A worker hangs when one unit takes longer than `hang_seconds`, and longer in proportion where the
    unit is larger than usual, since not all work can rest. It is silent when more than
    `silent_beats` heartbeats in a row do not come. The wait before a restart doubles with each loss,
    up to the longest. It is the first one again after a worker was up for `stable_seconds`.
    """

    heartbeat_seconds: float = 1.0
    hang_seconds: float = 120.0
    silent_beats: int = 10
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 30.0
    stable_seconds: float = 60.0

    def hangs(self, busy_seconds: float, unit_size: float = 1.0) -> bool:
        """Return whether a worker hangs that has been so long at a unit of so many usual ones."""
        return busy_seconds > self.hang_seconds * max(1.0, unit_size)

    def is_silent(self, missed_beats: int) -> bool:
        """Return whether a worker is silent that has missed so many heartbeats in a row."""
        return missed_beats > self.silent_beats

    def is_stable(self, up_seconds: float) -> bool:
        """Return whether a worker that was up for so long starts anew with the first wait."""
        return up_seconds >= self.stable_seconds

    def wait_seconds(self, losses: int) -> float:
        """Return the wait after `losses` losses, at least 1, with no stable time between them."""
        return float(min(self.longest_wait_seconds, self.first_wait_seconds * 2 ** min(losses - 1, 30)))
