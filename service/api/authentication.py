"""Who asks: before a request is read any further, its principal and its engine are known."""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.engine.engine import Engine
from service.principals.records import LOCAL, Principal
from service.settings import Settings


class Authentication:
    """ASGI middleware that gives each request its principal, and the engine as that may use it.

    They are in `request.state.principal` and `request.state.engine`. It is middleware and not a
    dependency of routes so that no route can be without it, and so that no body is read before.
    """

    def __init__(self, app: ASGIApp, settings: Settings, engine: Engine) -> None:
        self._app, self._settings, self._engine = app, settings, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            request = Request(scope)
            request.state.principal = principal = self._principal(request)
            request.state.engine = await self._engine.of(principal)
        await self._app(scope, receive, send)

    def _principal(self, request: Request) -> Principal:
        """Return the local principal, with the share of time that a trusted gateway names."""
        header = self._settings.tenant_header
        named = request.headers.get(header, "")[:128] if header else ""
        return Principal(share=named) if named else LOCAL
