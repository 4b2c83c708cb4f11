"""The limits on a request's body: its size, and the time in which it arrives."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTimeoutError, BodyTooLargeError, ClientGoneError, over_limit

SLOWEST_BYTES = 1 << 16
"""Bytes a second of the slowest upload, after its first `max_seconds`."""


class BodyLimit:
    """ASGI middleware that raises where a route reads a body that is too large or does not arrive.

    At the path `files`, the body is a form with a file: it may have `max_file_bytes` besides, and
    more time, a second for each `SLOWEST_BYTES` that have come.

    `BodyTooLargeError`: it has more than `max_bytes` bytes. A declared length is compared before
    the first byte is read, and bytes are counted as they arrive.
    `BodyTimeoutError`: `max_seconds` after the head of the request it is not complete.
    `ClientGoneError`: the client closes the connection before it is complete.

    The errors reach the exception handlers, so that each surface answers in its own shape.
    Starlette's `RequestBodyLimitMiddleware` answers with its own text, also where a route refuses
    the body for another reason; and its `ClientDisconnect` would be an unexpected error.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, max_seconds: float, files: str = "", max_file_bytes: int = 0
    ) -> None:
        self._app, self._max_bytes, self._max_seconds = app, max_bytes, max_seconds
        self._files, self._max_file_bytes = files, max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        declared_bytes = int(declared) if declared.isdecimal() else 0
        ends = asyncio.get_running_loop().time() + self._max_seconds
        read_bytes, complete = 0, False
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # a proxy may leave it there
        has_file = bool(self._files) and path == self._files

        async def receive_within_limits() -> Message:
            nonlocal read_bytes, complete
            if complete:
                return await receive()
            self._check_size(declared_bytes, has_file)
            try:
                async with asyncio.timeout_at(ends + (read_bytes / SLOWEST_BYTES if has_file else 0)):
                    message = await receive()
            except TimeoutError as error:
                text = f"the body did not arrive within {self._max_seconds:g} s (setting body_seconds)"
                raise BodyTimeoutError(text) from error
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client closed the connection before its body had arrived")
            read_bytes += len(message.get("body", b""))
            self._check_size(read_bytes, has_file)
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_within_limits, send)

    def _check_size(self, body_bytes: int, has_file: bool) -> None:
        if has_file and body_bytes > self._max_file_bytes + self._max_bytes:
            limit = f"{self._max_file_bytes} bytes"
            raise BodyTooLargeError(over_limit("the file is too large", limit, "max_file_bytes"))
        if not has_file and body_bytes > self._max_bytes:
            limit = f"{self._max_bytes} bytes"
            raise BodyTooLargeError(over_limit("the body is too large", limit, "max_body_bytes"))
