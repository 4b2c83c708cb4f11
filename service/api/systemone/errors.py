"""Errors as FastAPI writes them, which TypeSafe's clients read."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import Field

from service.api.json_bodies import JsonRoute
from service.errors import InvalidRequestError, ServiceError
from service.schemas import WireModel

ID_HEADER = "x-typesafe-request-id"
MAX_INPUT_CHARS = 1000


class FieldError(WireModel):
    """What is wrong with one field."""

    loc: list[str | int] = Field(description="Where: `body`, then names of fields and indices.")
    msg: str
    type: str = Field(description="Stable name of the error.")
    input: Any = Field(
        default=None, description=f"The value, where its JSON has at most {MAX_INPUT_CHARS} characters."
    )


class ErrorResponse(WireModel):
    """Body of every answer that is not 2xx: wrong fields with 422, else a text."""

    detail: list[FieldError] | str


class WrongFieldsError(InvalidRequestError):
    """The body does not have the fields of the wire. The answer has a type for each of `fields`."""

    code = "wrong_fields"

    def __init__(self, fields: list[FieldError]) -> None:
        super().__init__(fields[0].msg)
        self.args = (fields,)
        self.fields = fields


class CheckedRoute(JsonRoute):
    """A route whose refusals of a body name every wrong field."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that raises `WrongFieldsError` for pydantic's errors."""
        handle = super().get_route_handler()

        async def check_and_handle(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise WrongFieldsError(list(map(_field_error, error.errors()))) from error

        return check_and_handle


def _field_error(error: Mapping[str, Any]) -> FieldError:
    found = FieldError(
        loc=list(error["loc"]),
        msg=str(error["msg"]).removeprefix("Value error, "),
        type=error["type"],
    )
    given = error.get("input")
    try:
        written = json.dumps(given, allow_nan=False)
    except ValueError:  # a number above 1.8e308, which no answer could have
        return found
    return found.model_copy(update={"input": given}) if len(written) <= MAX_INPUT_CHARS else found


def error_shape(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Make FastAPI's error object. The request's id is in the header only."""
    if error.status != InvalidRequestError.status:
        return ErrorResponse(detail=error.message).model_dump()
    if isinstance(error, WrongFieldsError):
        fields = error.fields
    else:
        fields = [FieldError(loc=["body", *error.location], msg=error.message, type=error.code)]
    return ErrorResponse(detail=fields).model_dump(exclude_unset=True)
