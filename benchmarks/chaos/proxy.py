"""A TCP proxy that delays, cuts, and goes half-open on order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Mode = Literal["pass", "delay", "half-open", "cut"]
_PIECE = 1 << 16


@dataclass
class Proxy:
    """Forwards connections to a port of this machine, as `mode` says, from one event loop.

    `delay` waits for `delay_seconds` before each piece. `half-open` lets no byte through in either
    direction, and closes nothing: what came meanwhile goes on after it. `cut` refuses connections.
    """

    port: int
    delay_seconds: float = 0.2
    mode: Mode = "pass"
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._open.set()
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.abort()

    @property
    def own_port(self) -> int:
        """The port that clients connect to."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The address of the server behind, as its clients have it."""
        return f"http://127.0.0.1:{self.own_port}"

    def turn(self, mode: Mode) -> None:
        """Change the mode. `cut` aborts all connections now."""
        self.mode = mode
        if mode == "half-open":
            self._open.clear()
        else:
            self._open.set()
        if mode == "cut":
            self.abort()

    def abort(self) -> None:
        """Abort every connection, on both sides."""
        for writer in list(self._writers):
            _reset(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "cut":
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            _reset(writer)
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            await asyncio.gather(self._forward(reader, far_writer), self._forward(far_reader, writer))
        finally:
            self._writers -= both
            for one in both:
                one.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction to its end, and then close it there."""
        with contextlib.suppress(OSError):  # also where the other side was not connected any more
            while piece := await reader.read(_PIECE):
                if self.mode == "delay":
                    await asyncio.sleep(self.delay_seconds)
                await self._open.wait()
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other side gets RST, as from a machine that lost its state."""
    if (connection := writer.get_extra_info("socket")) is not None and not writer.transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
