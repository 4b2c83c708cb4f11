"""Bodies of requests as JSON: declared as JSON, and parsed strictly."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from service.errors import InvalidRequestError, MalformedJsonError, UnsupportedMediaTypeError

LARGE_BYTES = 1 << 15
MOST_ERRORS = 1000
"""pydantic describes an error in 8 us: the 330,000 of a body of 1 MB stopped the event loop for 4
s.
"""


class JsonRoute(APIRoute):
    """A route that checks the media type of its body and parses it before FastAPI does.

    This is a route class and not middleware because only a route knows whether it takes a body, and
    because FastAPI itself parses with `json.loads`, which accepts NaN. FastAPI documents
    `get_route_handler` as the method to override.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, called with a request whose body is read and parsed."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        optional = not self.body_field.field_info.is_required()
        annotation: Any = self.body_field.field_info.annotation
        checked: TypeAdapter[Any] = TypeAdapter(annotation)

        async def read_and_handle(request: Request) -> Response:
            if optional and _has_no_body(request):
                return await handle(request)
            read = await self.read(request)
            if len(await read.body()) > LARGE_BYTES:
                _check_number_of_errors(checked, await read.json())
            return await handle(read)

        return read_and_handle

    async def read(self, request: Request) -> Request:
        """Return the request with its body read and parsed.

        Raises as `check_media_type` and `JsonRequest`.
        """
        check_media_type(request)
        return JsonRequest(request, await request.body())


class JsonRequest(Request):
    """A request with the JSON of `body` in place of what `request` would parse.

    A byte-order mark before the JSON is ignored, as RFC 8259 (section 8.1) allows. Raises
    `MalformedJsonError`.
    """

    def __init__(self, request: Request, body: bytes) -> None:
        super().__init__(request.scope, request.receive)
        try:
            self._parsed = from_json(body.removeprefix(BOM_UTF8), allow_inf_nan=False)
        except ValueError as error:
            reason = _not_utf8(body) or _too_deep(error) or f"the body is not JSON: {error}"
            raise MalformedJsonError(reason) from error
        self._bytes = body

    async def body(self) -> bytes:
        """Return the body as bytes."""
        return self._bytes

    async def json(self) -> Any:
        """Return the body, parsed."""
        return self._parsed


def check_media_type(request: Request, media_types: Collection[str] = ("application/json",)) -> None:
    """Raise `UnsupportedMediaTypeError` unless the body is declared as one of `media_types`.

    It raises it too for a body that is declared as compressed.
    """
    encoding = request.headers.get("content-encoding", "").strip()
    if encoding.lower() not in {"", "identity"}:
        raise UnsupportedMediaTypeError(
            f"send the body as it is, without the content-encoding {encoding[:40]!a}: none is read here"
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in media_types:
        raise UnsupportedMediaTypeError(
            "send the body as JSON, with the header content-type: application/json"
        )


def _check_number_of_errors(checked: TypeAdapter[Any], parsed: Any) -> None:
    """Raise `InvalidRequestError` where more than `MOST_ERRORS` fields are wrong, without a list of
    them.
    """
    try:
        checked.validate_python(parsed)
    except ValidationError as error:
        if (count := error.error_count()) > MOST_ERRORS:
            raise InvalidRequestError(
                f"{count} fields of the body are wrong or unknown: send fewer than {MOST_ERRORS} of them to see which"
            ) from None


def _not_utf8(body: bytes) -> str | None:
    """Return what is wrong with a body that is not UTF-8, whatever charset it declares, else None."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"the body is not UTF-8 (byte {body[error.start]:02X} at {error.start}): JSON is sent in UTF-8"
    return None


def _too_deep(error: ValueError) -> str | None:
    """Return what is wrong with JSON that the parser stops in at its depth of 200, else None."""
    if "recursion limit" not in str(error):
        return None
    return "the body is nested too deep: at most 200 lists and objects may lie in each other"


def _has_no_body(request: Request) -> bool:
    return "transfer-encoding" not in request.headers and request.headers.get("content-length", "0") == "0"
