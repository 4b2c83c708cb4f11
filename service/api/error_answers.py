"""Errors as answers: each surface has its own shape of an error, which its paths choose."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.http import path_of, request_id
from service.api.wrong_paths import explain
from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    DrainingError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    QuotaExceededError,
    ServiceError,
    StoreFailedError,
    StoreUnavailableError,
    UnauthenticatedError,
    from_exception,
    from_status,
    from_validation,
)
from service.schemas import ErrorResponse

log = logging.getLogger(__name__)

ErrorShape: TypeAlias = Callable[[ServiceError, str], dict[str, Any]]
"""Makes the body of an error answer from the error and the request's id."""


@dataclass(frozen=True)
class ErrorForm:
    """How a surface answers with an error.

    `invalid_status` is the status for JSON that cannot be accepted: most clients expect 400.
    """

    shape: ErrorShape
    invalid_status: int = 400

    def status(self, error: ServiceError) -> int:
        """Return the status of the answer."""
        return self.invalid_status if error.status == InvalidRequestError.status else error.status

    def refusal(self, error: ServiceError, request_id: str) -> tuple[int, str]:
        """Return the status and the body, as a JSON text, of an answer without headers."""
        return self.status(error), json.dumps(self.shape(error, request_id))


def native_error(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Make the error object of the native surface."""
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


def message_with_field(error: ServiceError) -> str:
    """Return the message after the name of the wrong field, for shapes that have one text only."""
    return error.message if error.param is None else f"{error.param}: {error.message}"


# How a client has to prove who it is: RFC 9110, section 11.6.1, and RFC 6750, section 3.
_CHALLENGES = {
    UnauthenticatedError: 'Bearer realm="abmll"',
    ForbiddenError: 'Bearer realm="abmll", error="insufficient_scope"',
}
NATIVE = ErrorForm(native_error, InvalidRequestError.status)


def form_of(request: Request) -> ErrorForm:
    """Return the error form of the request's surface, by its path. The path needs no route."""
    forms: dict[str, ErrorForm] = request.app.state.error_forms
    path = path_of(request)
    return next((form for prefix, form in forms.items() if path.startswith(prefix)), NATIVE)


def error_response(
    request: Request, error: ServiceError, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Answer with the error in the shape of its surface, and with its Retry-After."""
    sent = dict(headers or {})
    if error.retry_after_seconds is not None:
        sent["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, UnauthenticatedError | ForbiddenError):
        sent["www-authenticate"] = _CHALLENGES[type(error)]
    if isinstance(error, QuotaExceededError):
        sent["x-should-retry"] = "false"  # clients of OpenAI and of Cohere try 429 again otherwise
    if isinstance(error, StoreFailedError | StoreUnavailableError):
        request.app.state.metrics.store_errors.labels(error.code).inc()
    if isinstance(error, BodyTimeoutError):  # the rest of the body may still come, for ever
        sent["connection"] = "close"
    form = form_of(request)
    return JSONResponse(form.shape(error, request_id(request)), form.status(error), sent)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an expected error, as FastAPI's exception handler."""
    if isinstance(error, RequestValidationError):
        return error_response(request, from_validation(error.errors()))
    if isinstance(error, HTTPException) and error.status_code == NotFoundError.status:
        root = request.scope.get("root_path", "")
        templates = [root + template for template in request.app.state.paths]
        return error_response(request, NotFoundError(explain(request.scope["path"], templates)))
    if isinstance(error, HTTPException):
        return error_response(request, from_status(error.status_code), dict(error.headers or {}))
    return error_response(request, from_exception(error))


class UnexpectedErrors:
    """ASGI middleware that answers unexpected errors with 500, and cancelled requests with 503.

    Shutdown cancels requests. Starlette's own handler of unexpected errors raises them again after
    the answer, and does not see cancellation.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises the error where the answer has already begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except (Exception, asyncio.CancelledError) as error:
            if begun:
                raise
            request = Request(scope)
            if isinstance(error, asyncio.CancelledError):  # the time to drain is over
                refusal: ServiceError = DrainingError("the server is shutting down")
            else:
                log.exception("request %s failed", request_id(request))
                refusal = from_exception(error)
            await error_response(request, refusal)(scope, receive, send)


def documented_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document the native error object as the answer of `statuses`.

    A body that may be too large may also be too slow.
    """
    of_bodies = {BodyTimeoutError.status} if BodyTooLargeError.status in statuses else set()
    return {status: {"model": ErrorResponse} for status in sorted({*statuses, *of_bodies})}
