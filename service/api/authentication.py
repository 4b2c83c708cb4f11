"""Who asks: before a request is read any further, its key is checked, and its engine is known."""

from __future__ import annotations

from functools import partial

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.error_answers import error_response
from service.api.scopes import is_open
from service.engine.engine import Engine
from service.errors import ServiceError
from service.principals.keyring import KeyRing
from service.principals.records import LOCAL, Principal
from service.request_notes import current_notes
from service.settings import Settings


class Authentication:
    """ASGI middleware that gives each request its principal, and the engine as that may use it.

    They are in `request.state.principal` and `request.state.engine`. It is middleware and not a
    dependency of routes, so that no route can be without it, not even one that does not exist, and
    so that no byte of a body is read before. Paths that are open to all have neither of the two.
    """

    def __init__(self, app: ASGIApp, settings: Settings, engine: Engine, keys: KeyRing | None) -> None:
        """Check the key of each request, where there are any."""
        self._app, self._settings, self._engine, self._keys = app, settings, engine, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if self._keys is not None and is_open(request, self._settings):
            await self._app(scope, receive, send)
            return
        try:
            principal = self._principal(request)
        except ServiceError as error:
            await error_response(request, error)(scope, receive, send)
            return
        engine = await self._engine.of(principal)
        request.state.principal, request.state.engine = principal, engine
        request.state.check_key = partial(self._check, principal)
        notes = current_notes()
        if notes is not None:
            notes.tenant = principal.shares_time_as

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                left = engine.meter.headers(principal.limits)
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in left.items()),
                ]
            await send(message)

        try:
            engine.meter.take_request(principal.limits)
        except ServiceError as error:
            await error_response(request, error)(scope, receive, send_with_limits)
            return
        await self._app(scope, receive, send_with_limits)

    def _principal(self, request: Request) -> Principal:
        """Return whose the key of the request is. Raises `UnauthenticatedError`.

        Without keys that is the local principal, with the share of time that a trusted gateway
        names.
        """
        if self._keys is not None:
            return self._keys.authenticate(_key_of(request))
        header = self._settings.tenant_header
        named = request.headers.get(header, "")[:128] if header else ""
        return Principal(share=named) if named else LOCAL

    def _check(self, principal: Principal) -> None:
        if self._keys is not None:
            self._keys.current(principal)


def _key_of(request: Request) -> str | None:
    """Return the key of the request, if it has one."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and given.strip():
        return given.strip()
    return request.headers.get("x-api-key") or None
