"""Request lines with a whole address, as `GET http://host/livez HTTP/1.1`."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send


class AbsoluteTargets:
    """ASGI middleware that reads the path from the address of such a line.

    Clients write it to what they take for a proxy, and every server has to accept it (RFC 9112,
    section 3.2.2). uvicorn passes the address on as the path.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"].startswith(("http://", "https://")):
            scope["path"] = urlsplit(scope["path"]).path or "/"
        await self._app(scope, receive, send)
