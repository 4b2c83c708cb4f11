"""Chooses the worker of a job: the one its key prefers, unless that has many more jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

# A job goes to another worker only if the preferred one has more than so many jobs more: about a
# unit of predictions. Another worker may need one copy of the adapter to its device, but jobs that
# wait need whole units.
SPILL_JOBS = 4


def preferred(key: str, workers: Mapping[str, int]) -> str:
    """Return the worker that `key` prefers (rendezvous hashing).

    When a worker is added or removed, only its own keys move.
    """
    return max(workers, key=lambda name: hashlib.sha256(f"{name}\0{key}".encode()).digest())


def place(key: str, jobs_of: Mapping[str, int], spill: int = SPILL_JOBS) -> str:
    """Return the worker for `key`. `jobs_of` has the number of jobs of each, and is not empty.

    It is another than the preferred one where that has more than `spill` jobs more.
    """
    first = preferred(key, jobs_of)
    least = min(jobs_of, key=lambda name: jobs_of[name])
    return least if jobs_of[first] - jobs_of[least] > spill else first
