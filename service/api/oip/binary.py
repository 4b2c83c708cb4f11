"""The binary tensor data extension: tensors follow the JSON object, whose length is in a header.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol/binary-tensor-data-extension
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from fastapi import Request

from service.api.json_bodies import JsonRequest, JsonRoute, check_media_type
from service.api.oip.wire import Datatype
from service.errors import InvalidRequestError

JSON_LENGTH = "inference-header-content-length"
_MEDIA_TYPES = ("application/json", "application/octet-stream", "")  # Triton's client declares none
_LENGTH = struct.Struct("<I")


class TensorRoute(JsonRoute):
    """A route whose body is JSON and then the bytes of tensors.

    Puts these bytes into `request.state.tensors`.
    """

    async def read(self, request: Request) -> Request:
        """Return the request with its JSON read and parsed. Raises as `check_media_type`."""
        check_media_type(request, _MEDIA_TYPES)
        json, request.state.tensors = split(await request.body(), request.headers.get(JSON_LENGTH))
        headers = request.headers.mutablecopy()
        headers["content-type"] = "application/json"
        return JsonRequest(Request({**request.scope, "headers": headers.raw}, request.receive), json)


def split(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    """Split `body` into its JSON, as long as the header says, and the bytes after it.

    Raises `InvalidRequestError`.
    """
    if json_length is None:
        return body, b""
    if not re.fullmatch("[0-9]{1,15}", json_length) or int(json_length) > len(body):
        raise InvalidRequestError(
            f"it must be a number of bytes, at most the body's {len(body)}", JSON_LENGTH
        )
    return body[: int(json_length)], body[int(json_length) :]


def decode_texts(tensor: bytes, param: str) -> list[str]:
    """Decode a BYTES tensor: each text is its length in four bytes, little-endian, and then UTF-8.

    Raises `InvalidRequestError`, with `param` as the wrong field.
    """
    texts, offset = [], 0
    while offset < len(tensor):
        begin = offset + _LENGTH.size
        if begin > len(tensor):
            raise InvalidRequestError("the binary data ends within a length", param)
        offset = begin + _LENGTH.unpack_from(tensor, begin - _LENGTH.size)[0]
        if offset > len(tensor):
            raise InvalidRequestError("the binary data ends within a text", param)
        try:
            texts.append(tensor[begin:offset].decode())
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"text {len(texts)} is not UTF-8", param) from error
    return texts


def encode(datatype: Datatype, data: Sequence[str] | Sequence[float]) -> bytes:
    """Encode the elements of a tensor as binary data."""
    if datatype == "FP64":
        return struct.pack(f"<{len(data)}d", *data)
    texts = (str(text).encode() for text in data)
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
