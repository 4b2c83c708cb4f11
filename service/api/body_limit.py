"""The limit on the size of a request's body."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError


class BodyLimit:
    """ASGI middleware that raises `BodyTooLargeError` when a route reads more than `max_bytes`.

    A declared length is compared before the first byte is read, and bytes are counted as they
    arrive. The error reaches the exception handlers, so that each surface answers in its own shape.
    Starlette's `RequestBodyLimitMiddleware` answers with its own text, also where a route refuses
    the body for another reason.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        declared_bytes = int(declared) if declared.isdecimal() else 0
        read_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal read_bytes
            self._check(declared_bytes)
            message = await receive()
            read_bytes += len(message.get("body", b""))
            self._check(read_bytes)
            return message

        await self._app(scope, receive_within_limit, send)

    def _check(self, body_bytes: int) -> None:
        if body_bytes > self._max_bytes:
            raise BodyTooLargeError(f"the body is over the limit of {self._max_bytes} bytes")
