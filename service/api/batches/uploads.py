"""Reads an upload, a multipart form with one file, to the disk: no part of the file stays in
memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.bulk.files import Upload
from service.errors import InvalidRequestError, UnsupportedMediaTypeError

_MEDIA_TYPE = b"multipart/form-data"
_BLOCK_BYTES = 1 << 18
_MAX_FIELD_BYTES = 1024
_MAX_FIELDS = 16
_MAX_NAME_CHARS = 255


@dataclass(frozen=True)
class Received:
    """The file of a form, and its other fields by name."""

    upload: Upload
    fields: dict[str, str]


async def receive(request: Request, begin: Callable[[str], Upload]) -> Received:
    """Return the form in the body of `request`; `begin` begins the upload of a file of this name.

    Raises `UnsupportedMediaTypeError`, `InvalidRequestError` for what is no such form, and what the
    upload raises. Then nothing is left of the file.
    """
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != _MEDIA_TYPE or not options.get(b"boundary"):
        raise UnsupportedMediaTypeError("send the file as a form, with content-type: multipart/form-data")
    form = _Form(options[b"boundary"], begin)
    try:
        block = bytearray()
        async for data in request.stream():
            block += data
            if len(block) >= _BLOCK_BYTES:
                await asyncio.to_thread(form.feed, bytes(block))
                block.clear()
        await asyncio.to_thread(form.feed, bytes(block))
        return form.received()
    except BaseException:
        form.discard()
        raise


class _Form:
    """A form that arrives in blocks."""

    def __init__(self, boundary: bytes, begin: Callable[[str], Upload]) -> None:
        self._begin = begin
        self._upload: Upload | None = None
        self._fields: dict[str, bytearray] = {}
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._take: Callable[[bytes], object] = bytes
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Read a block."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequestError(f"the body is not a multipart form: {error}") from error

    def received(self) -> Received:
        """Return what was read. Raises `InvalidRequestError` where there is no file, or no end."""
        if not self._ended:
            raise InvalidRequestError("the multipart form has no end")
        if self._upload is None:
            raise InvalidRequestError("the form has no file", "file")
        return Received(self._upload, {name: text.decode() for name, text in self._fields.items()})

    def discard(self) -> None:
        """Leave nothing of the file behind."""
        if self._upload is not None:
            self._upload.discard()

    # ---- what the parser has found

    def _on_part(self) -> None:
        self._headers, self._header, self._value = {}, b"", b""

    # The parser itself bounds the headers of a part.

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file":
            if self._upload is not None:
                raise InvalidRequestError("the form has two files", "file")
            filename = options.get(b"filename", b"").decode("utf-8", "replace")
            self._upload = self._begin(filename[:_MAX_NAME_CHARS] or "upload.jsonl")
            self._take = self._upload.write
            return
        if name in self._fields or len(self._fields) >= _MAX_FIELDS:
            raise InvalidRequestError(
                f"the form has the field {name!r:.80} twice, or too many", f"{name:.80}"
            )
        field = self._fields[name] = bytearray()
        self._take = field.extend

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._take(data[start:end])
        for name, text in self._fields.items():
            if len(text) > _MAX_FIELD_BYTES:
                found = f"the field {name!r:.80} is too long"
                raise InvalidRequestError(f"{found}: the limit is {_MAX_FIELD_BYTES} bytes")

    def _on_end(self) -> None:
        self._ended = True
