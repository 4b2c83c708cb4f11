"""Server-sent events: the one place that writes the data of events, for every surface."""

from __future__ import annotations

from typing import Any

from fastapi.sse import format_sse_event

EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {
        "event": {"type": "string", "description": "Its name, if it has one."},
        "data": {"type": "string", "description": "JSON in one line, or a plain word such as `[DONE]`."},
    },
}
"""The schema of each event in the document: tools that check a stream read it event by event."""

_ENDS_OF_LINES = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Ends of lines that JSON leaves as they are, with their escapes. JSON escapes all others itself.

The standard ends a line of an event at CR and LF only. httpx, requests and Python's `splitlines`
also end it at these.
"""


def data_event(data: str, name: str | None = None) -> bytes:
    """Return one event with `data`, one line of JSON or a plain word, and with a name if given."""
    return format_sse_event(event=name, data_str=data.translate(_ENDS_OF_LINES))
