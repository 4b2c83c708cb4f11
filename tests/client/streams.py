"""Both clients behind one face, so that each test of streams reads with either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, TypeAlias

import httpx

from abmll_client import AsyncClient, Client

Kind: TypeAlias = type[Client] | type[AsyncClient]
KINDS: list[Kind] = [Client, AsyncClient]


def read(
    kind: Kind,
    url: str,
    method: str,
    *arguments: Any,
    most: int = 10**6,
    on_event: Callable[[], object] = lambda: None,
    client: Mapping[str, Any] | None = None,
    **fields: Any,
) -> list[Any]:
    """Return the first `most` events of a stream, then leave it.

    `on_event` is called at each; `client` are arguments of the client.
    """
    own, found = dict(client or {}), list[Any]()

    def enough(event: Any) -> bool:
        found.append(event)
        on_event()
        return len(found) == most

    async def play() -> None:
        async with AsyncClient(url, **own) as there, getattr(there, method)(*arguments, **fields) as events:
            async for event in events:
                if enough(event):
                    break

    if kind is AsyncClient:
        asyncio.run(play())
        return found
    with Client(url, **own) as there, getattr(there, method)(*arguments, **fields) as events:
        for event in events:
            if enough(event):
                break
    return found


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes in these pieces; `broken` is raised behind them.

    `closed` says that it was closed.
    """

    def __init__(self, pieces: list[bytes], broken: Exception | None = None) -> None:
        self.pieces, self.broken, self.closed = pieces, broken, False

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.broken:
            raise self.broken

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


class Played(httpx.MockTransport):
    """A server that gives `answers` in turn, and counts its requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()
        super().__init__(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[len(self.requests) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def played(*pieces: bytes, broken: Exception | None = None) -> httpx.Response:
    """Return an answer with the events in `pieces`."""
    return answer_of(Pieces(list(pieces), broken))


def answer_of(body: Pieces) -> httpx.Response:
    """Return an answer with this body of events."""
    return httpx.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, stream=body)
