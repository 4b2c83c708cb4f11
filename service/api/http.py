"""What routes read from a request: the engine, its id, its tenant, and whether the client left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from service.engine.engine import Engine
from service.errors import ClientGoneError
from service.executors.contract import DEFAULT_TENANT
from service.settings import Settings

T = TypeVar("T")


def engine_of(request: Request) -> Engine:
    """Return the engine of the application that serves the request."""
    engine: Engine = request.app.state.engine
    return engine


def settings_of(request: Request) -> Settings:
    """Return the settings of the application that serves the request."""
    settings: Settings = request.app.state.settings
    return settings


def request_id(request: Request) -> str:
    """Return the id of the request, which the answer has in its header `x-request-id`."""
    return str(request.state.request_id)


def tenant_of(request: Request) -> str:
    """Return the name of the tenant whose share of the workers' time the request uses.

    Without the setting `tenant_header`, all requests have the same tenant. Tenants share time, they
    are not isolated.
    """
    settings = settings_of(request)
    named = request.headers.get(settings.tenant_header, "") if settings.tenant_header else ""
    return named[:128] or DEFAULT_TENANT


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
