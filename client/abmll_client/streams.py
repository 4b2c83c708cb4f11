"""The events of one request as callers read them: an iterator that closes its connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Generic, Self

from abmll_client.errors import ClientError
from abmll_client.events import EventT

_CLOSED = "this stream is closed: read its events inside its `with` statement"


class EventStream(Generic[EventT]):
    """Events as they come. Use it in a `with` statement, which closes the connection at its end.

    The request is sent when the first event is read, and again only until there is one. Then the
    stream goes to its last event, or raises `ClientError`: the server's error, or
    `ConnectionFailedError` where the connection breaks. It never ends silently.
    """

    def __init__(self, events: Generator[EventT]) -> None:
        self._events = events
        self._closed = self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> EventT:
        if self._closed and not self._ended:
            raise ClientError(_CLOSED)
        try:
            return next(self._events)
        except StopIteration:
            self._ended = True
            raise

    def close(self) -> None:
        """Close the connection. The server ends the work of a prediction that has no reader."""
        self._closed = True
        self._events.close()


class AsyncEventStream(Generic[EventT]):
    """As `EventStream`, for `async with` and `async for`."""

    def __init__(self, events: AsyncGenerator[EventT]) -> None:
        self._events = events
        self._closed = self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventT:
        if self._closed and not self._ended:
            raise ClientError(_CLOSED)
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            self._ended = True
            raise

    async def aclose(self) -> None:
        """As `EventStream.close`."""
        self._closed = True
        await self._events.aclose()
