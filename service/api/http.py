"""What every route shares: request ids, the access log, reading JSON bodies within a limit, and errors as JSON."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeAlias, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine.engine import Engine
from service.errors import (
    BodyTooLargeError,
    ClientGoneError,
    DrainingError,
    MalformedJsonError,
    ServiceError,
    UnsupportedMediaTypeError,
    from_exception,
    from_status,
    from_validation,
)
from service.executors.contract import EVERYBODY
from service.metrics import Metrics
from service.schemas import ErrorResponse
from service.settings import Settings

access_log = logging.getLogger("service.access")
log = logging.getLogger(__name__)

T = TypeVar("T")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PROBES = {"/livez", "/readyz", "/metrics"}  # called every few seconds: not worth a line each


class Observed:
    """ASGI middleware, the outermost: gives each request an id, counts and logs it, and turns surprises into a 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        request.state.request_id = request_id
        started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except (Exception, asyncio.CancelledError) as error:
            if status:
                raise
            if isinstance(error, asyncio.CancelledError):  # the server has drained for as long as it may
                refusal: ServiceError = DrainingError("the server is shutting down")
            else:
                log.exception("request %s failed", request_id)
                refusal = from_exception(error)
            await error_response(request, refusal)(scope, receive, send_with_id)
        finally:
            # The template, not the path: ids in paths would make endless series.
            route = getattr(scope.get("route"), "path", "unmatched")
            seconds = time.monotonic() - started
            self._metrics.requests.labels(route, status).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            level = logging.DEBUG if route in _PROBES and status < 400 else logging.INFO
            access_log.log(level, "%s %s %s %d %.3fs", request_id, request.method, route, status, seconds)


class JsonRoute(APIRoute):
    """A route that reads its body itself: declared as JSON, within the limit, and JSON to the letter."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, fed with a request whose body is already read and parsed."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        optional = not self.body_field.field_info.is_required()

        async def read_and_handle(request: Request) -> Response:
            if optional and _has_no_body(request):
                return await handle(request)
            return await handle(await self.read(request))

        return read_and_handle

    async def read(self, request: Request) -> Request:
        """`request` with its body read and parsed."""
        return JsonRequest(request, await read_body(request))


class JsonRequest(Request):
    """`request` whose body, already read, is `body`. Raises `MalformedJsonError`."""

    def __init__(self, request: Request, body: bytes) -> None:
        super().__init__(request.scope, request.receive)
        try:
            self._parsed = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise MalformedJsonError(f"the body is not JSON: {error}") from error
        self._bytes = body

    async def body(self) -> bytes:
        """The body."""
        return self._bytes

    async def json(self) -> Any:
        """The body, parsed."""
        return self._parsed


def _has_no_body(request: Request) -> bool:
    return "transfer-encoding" not in request.headers and request.headers.get("content-length", "0") == "0"


async def read_body(request: Request, media_types: Collection[str] = ("application/json",)) -> bytes:
    """The body. Raises `UnsupportedMediaTypeError` unless it is one of `media_types`, `BodyTooLargeError` over the limit."""
    limit_bytes = request.app.state.settings.max_body_bytes
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in media_types:
        raise UnsupportedMediaTypeError(
            "send the body as JSON, with the header content-type: application/json"
        )
    message = f"the body is over the limit of {limit_bytes} bytes"
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise BodyTooLargeError(message)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise BodyTooLargeError(message)
    return bytes(body)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away: nobody would read it."""
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


def documented_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error object as the documented answer of `statuses`."""
    return {status: {"model": ErrorResponse} for status in statuses}


def engine_of(request: Request) -> Engine:
    """The engine of the application that serves this request."""
    engine: Engine = request.app.state.engine
    return engine


def tenant_of(request: Request) -> str:
    """Whom to count the request's work to; everybody is one tenant unless `tenant_header` is set. For fairness, not isolation."""
    settings: Settings = request.app.state.settings
    named = request.headers.get(settings.tenant_header, "") if settings.tenant_header else ""
    return named[:128] or EVERYBODY


def request_id(request: Request) -> str:
    """The id of this request, as answered in `x-request-id`."""
    return str(request.state.request_id)


ErrorShape: TypeAlias = Callable[[ServiceError, str], dict[str, Any]]
"""An error and the request's id as the body of a surface's error answers."""


def own_error(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The error object of our own surface."""
    body: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "request_id": request_id,
    }
    if error.adapter_id is not None:
        body["adapter_id"] = error.adapter_id
    body |= error.details
    return {"error": body}


def told(error: ServiceError) -> str:
    """The message with the field at fault, for shapes that have no place for it."""
    return error.message if error.param is None else f"{error.param}: {error.message}"


def shape_of(request: Request) -> ErrorShape:
    """That of the surface which the path belongs to; paths without a route have one too."""
    shapes: dict[str, ErrorShape] = request.app.state.error_shapes
    path = request.url.path
    return next((shape for prefix, shape in shapes.items() if path.startswith(prefix)), own_error)


def _status_of(error: ServiceError, shape: ErrorShape) -> int:
    """The error's; only our own surface knows 422, to clients of the others it is a 400."""
    return 400 if error.status == 422 and shape is not own_error else error.status


def error_response(
    request: Request, error: ServiceError, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The error in the shape of its surface, with Retry-After where it says when to come back."""
    sent = dict(headers or {})
    if error.retry_after_seconds is not None:
        sent["retry-after"] = str(error.retry_after_seconds)
    shape = shape_of(request)
    return JSONResponse(shape(error, request_id(request)), _status_of(error, shape), sent)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for all that the application raises on purpose."""
    if isinstance(error, RequestValidationError):
        return error_response(request, from_validation(error.errors()))
    if isinstance(error, HTTPException):
        return error_response(request, from_status(error.status_code), dict(error.headers or {}))
    return error_response(request, from_exception(error))
