"""Which worker a job goes to: the one that its key prefers, unless that one has much more to do than another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

SPILL_JOBS = (
    4  # about a unit's worth of predictions: a cold adapter costs one copy to the device, a queue costs units
)


def preferred(key: str, workers: Mapping[str, int]) -> str:
    """The worker that `key` prefers (rendezvous hashing): when workers come and go, only the keys of those move."""
    return max(workers, key=lambda name: hashlib.sha256(f"{name}\0{key}".encode()).digest())


def place(key: str, jobs_of: Mapping[str, int]) -> str:
    """The worker for `key`, of those in `jobs_of` (not empty), which says how many jobs each has."""
    first = preferred(key, jobs_of)
    least = min(jobs_of, key=lambda name: jobs_of[name])
    return least if jobs_of[first] - jobs_of[least] > SPILL_JOBS else first
