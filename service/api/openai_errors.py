"""OpenAI's error object, which the surfaces of OpenAI's clients have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from service.errors import (
    PromptTooLongForContextError,
    QueueFullError,
    QuotaExceededError,
    RateLimitedError,
    ServiceError,
    UnknownAdapterError,
    UnknownModelError,
    error_kinds,
)
from service.schemas import WireModel

_CODES: dict[type[ServiceError], str] = {
    UnknownAdapterError: "model_not_found",
    UnknownModelError: "model_not_found",
    PromptTooLongForContextError: "context_length_exceeded",
    QueueFullError: "rate_limit_exceeded",
    RateLimitedError: "rate_limit_exceeded",
    QuotaExceededError: "insufficient_quota",
}


OpenAIErrorCode = TypeAliasType(
    "OpenAIErrorCode",
    Annotated[
        str,
        Field(
            description="Stable name of the error. Later versions may have more.",
            json_schema_extra={"enum": sorted({_CODES.get(error, error.code) for error in error_kinds()})},
        ),
    ],
)


class ErrorBody(WireModel):
    """Why a request was refused or failed."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field that is wrong.")
    code: OpenAIErrorCode


class ErrorResponse(WireModel):
    """Body of every answer that is not 2xx."""

    error: ErrorBody


DOCUMENTED: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in ("4XX", "5XX")}
"""The error object as the answer of all other statuses, for the documentation of a route."""


def error_shape(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Make OpenAI's error object. The request's id is in the header only."""
    if error.status == QueueFullError.status:
        kind = "rate_limit_error"
    else:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
    code = _CODES.get(type(error), error.code)
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}
