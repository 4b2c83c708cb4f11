"""Server-sent events from the bytes of a body.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_END_OF_LINE = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ServerSentEvent:
    """One event: its name, and its data as the server wrote it."""

    name: str
    data: str


class EventParser:
    """Puts events together from the pieces of a body, wherever it is cut.

    A line ends at CR, LF or both, and nowhere else: httpx's `iter_lines` also ends one at U+0085
    and U+2028. Comments, which hold a connection open, are left out, and so is an event that the
    end of the body cuts off.
    """

    def __init__(self) -> None:
        self._rest = b""  # a line that has not ended yet
        self._begun = self._after_cr = False
        self._name, self._data = "", list[str]()

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that end in the next piece of the body."""
        if not piece:
            return
        if self._after_cr:  # the two halves of one end of a line
            piece = piece.removeprefix(b"\n")
        self._after_cr = piece.endswith(b"\r")
        *lines, self._rest = _END_OF_LINE.split(self._rest + piece)
        for line in lines:
            if not self._begun:
                line, self._begun = line.removeprefix(_BYTE_ORDER_MARK), True  # noqa: PLW2901
            if line:
                self._take(line.decode("utf-8", "replace"))
                continue
            if self._data:
                yield ServerSentEvent(self._name or "message", "\n".join(self._data))
            self._name, self._data = "", []

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
