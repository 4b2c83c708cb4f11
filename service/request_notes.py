"""Notes on the request in work: what its log lines and the headers of its answer name.

The middleware makes them, and whatever works for the request adds to them: they are found by the
context of the task, which tasks hand on to the tasks that they begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class RequestNotes:
    """What is known of a request: no text of it. `seconds` are the times of its parts, by name."""

    request_id: str
    tenant: str | None = None
    adapter_id: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def server_timing(self) -> str:
        """Return the value of the header `Server-Timing`, in milliseconds; empty without times."""
        return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in self.seconds.items())


_current: ContextVar[RequestNotes | None] = ContextVar("request_notes", default=None)


def current_notes() -> RequestNotes | None:
    """Return the notes on the request that this task works for; None where it works for none."""
    return _current.get()


@contextmanager
def noting(notes: RequestNotes) -> Iterator[None]:
    """Have `notes` be the current ones of this task, and of those that it begins meanwhile."""
    token = _current.set(notes)
    try:
        yield
    finally:
        _current.reset(token)
