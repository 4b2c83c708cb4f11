"""Request ids, the access log, and the metrics of requests."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.http import path_of
from service.metrics import Metrics
from service.request_notes import RequestNotes, noting
from service.tracing import Tracer

access_log = logging.getLogger("service.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Called every few seconds: see `RequestLog._level`.
_PROBES = {"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}


class RequestLog:
    """ASGI middleware, the outermost: gives each request an id, then logs and counts its answer.

    The id is the client's `x-request-id` where that is well-formed, else a new one. It is in
    `request.state.request_id` and in the answer's header `x-request-id`. `id_headers` has one more
    header for it by the beginning of the path, for clients that look there. An answer whose times
    are known when it begins has them in `server-timing`.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, id_headers: Mapping[str, str], tracer: Tracer | None = None
    ) -> None:
        self._app, self._metrics, self._id_headers = app, metrics, id_headers
        self._tracer = tracer or Tracer()
        self._failing: set[str] = set()  # probes whose last answer was an error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        request.state.request_id = request_id
        names = [b"x-request-id", *self._headers_for(request)]
        notes = RequestNotes(request_id)
        started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *((name, request_id.encode()) for name in names)]
                if notes.seconds:
                    message["headers"].append((b"server-timing", notes.server_timing().encode()))
            await send(message)

        with noting(notes), self._tracer.request(request.method, request.headers) as span:
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                # The route's template and not the path: ids in paths would make a new series for
                # each.
                route = getattr(scope.get("route"), "path", "unmatched")
                seconds = time.monotonic() - started
                self._tracer.end(span, request.method, route, status, notes)
                self._metrics.requests.labels(route, status).inc()
                self._metrics.request_seconds.labels(route).observe(seconds)
                level = self._level(route, status)
                known = (request_id, request.method, route, status, seconds)
                fields = dict(zip(("method", "route", "status", "seconds"), known[1:], strict=True))
                access_log.log(level, "%s %s %s %d %.3fs", *known, extra={"fields": fields})

    def _level(self, route: str, status: int) -> int:
        """Return the level of a line: DEBUG for probes, but INFO where one begins to fail."""
        if route not in _PROBES:
            return logging.INFO
        if status < 400:
            self._failing.discard(route)
            return logging.DEBUG
        begins = route not in self._failing
        self._failing.add(route)
        return logging.INFO if begins else logging.DEBUG

    def _headers_for(self, request: Request) -> list[bytes]:
        path = path_of(request)
        return [name.encode() for prefix, name in self._id_headers.items() if path.startswith(prefix)]
