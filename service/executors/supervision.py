"""When a worker counts as hung, silent, slow or too large, and how long to wait before a restart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Supervision:
    """Rules for finding lost workers and restarting them.

    A worker hangs when one unit takes longer than `hang_seconds`, and longer in proportion where
    the unit is larger than usual, since not all work can rest. It is silent when more than
    `silent_beats` heartbeats in a row do not come. The wait before a restart doubles with each
    loss, up to the longest. It is the first one again after a worker was up for `stable_seconds`.

    A worker that has more than `most_memory_bytes`, or has done `most_jobs`, finishes its jobs for
    at most `leave_seconds` and is started again; None sets no limit. An idle worker is checked
    every `check_seconds`. It is slow when `slow_checks` in a row took over `slow_factor` times as
    long as the fastest.
    """

    heartbeat_seconds: float = 1.0
    hang_seconds: float = 120.0
    silent_beats: int = 10
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 30.0
    stable_seconds: float = 60.0
    most_memory_bytes: int | None = None
    most_jobs: int | None = None
    leave_seconds: float = 45.0
    check_seconds: float = 300.0
    slow_factor: float = 10.0
    slow_checks: int = 3

    def hangs(self, busy_seconds: float, unit_size: float = 1.0) -> bool:
        """Return whether a worker hangs that has been so long at a unit of so many usual ones."""
        return busy_seconds > self.hang_seconds * max(1.0, unit_size)

    def is_silent(self, missed_beats: int) -> bool:
        """Return whether a worker is silent that has missed so many heartbeats in a row."""
        return missed_beats > self.silent_beats

    def outgrown(self, memory_bytes: int | None, jobs: int) -> str | None:
        """Return which limit a worker is over that has this memory and has done these jobs."""
        if self.most_memory_bytes is not None and (memory_bytes or 0) > self.most_memory_bytes:
            return "memory"
        if self.most_jobs is not None and jobs >= self.most_jobs:
            return "requests"
        return None

    def is_stable(self, up_seconds: float) -> bool:
        """Return whether a worker that was up for so long starts anew with the first wait."""
        return up_seconds >= self.stable_seconds

    def wait_seconds(self, losses: int) -> float:
        """Return the wait after `losses` losses, at least 1, with no stable time between them."""
        return float(min(self.longest_wait_seconds, self.first_wait_seconds * 2 ** min(losses - 1, 30)))
