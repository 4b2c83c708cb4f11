"""The path below which a proxy shows the server."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """ASGI middleware that puts `root_path` before the paths of requests, as ASGI wants it there.

    The proxy may have removed it or left it. uvicorn's own `root_path` needs it removed.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            path = scope["path"]
            if not path.startswith(f"{self._root_path}/"):
                path = self._root_path + path
            scope.update(root_path=self._root_path, path=path)
        await self._app(scope, receive, send)
