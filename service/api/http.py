"""What routes read from a request: who asks, the engine, its id, and whether the client left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from service.engine.engine import Engine
from service.errors import ClientGoneError
from service.principals.records import Principal
from service.settings import Settings

T = TypeVar("T")


def engine_of(request: Request) -> Engine:
    """Return the engine as the principal of the request may use it.

    Routes that are open to all have none: see `service.api.authentication`.
    """
    engine: Engine = request.state.engine
    return engine


def principal_of(request: Request) -> Principal:
    """Return who asks. Routes that are open to all do not know it."""
    principal: Principal = request.state.principal
    return principal


def settings_of(request: Request) -> Settings:
    """Return the settings of the application that serves the request."""
    settings: Settings = request.app.state.settings
    return settings


def path_of(request: Request) -> str:
    """Return the path of the request below the root path, which a proxy may leave there.

    It is the one by which the router chooses. `request.url` is made with the header `Host`, from
    which some versions of Starlette take a path too: `Host: x/livez?` would open any path.
    """
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def request_id(request: Request) -> str:
    """Return the id of the request, which the answer has in its header `x-request-id`."""
    return str(request.state.request_id)


def check_key(request: Request) -> None:
    """Raise `UnauthenticatedError` where the key of the request has been revoked, or has expired.

    For answers that take long, before each of their parts.
    """
    request.state.check_key()


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, but cancel it when the client closes the connection.

    Raises `ClientGoneError` then, and what `work` raises.
    The body must have been read before: from then on the connection brings nothing but its end.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("the client closed the connection")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
