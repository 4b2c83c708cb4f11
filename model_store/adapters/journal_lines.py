"""A record of a journal as a line: the first digits of its digest, a space, and its JSON."""

from __future__ import annotations

import hashlib

from model_store.adapters.contract import Record
from model_store.errors import NonFiniteError
from model_store.storage import finite_json
from model_store.tensors import canonical_json

_DIGEST_CHARS = 16


def encoded(record: Record) -> bytes:
    """Return the line. Raises `NonFiniteError`."""
    try:
        text = canonical_json(record, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"a record has a number that is not finite: {error}") from error
    return b"%s %s\n" % (_digest(text), text)


def decoded(line: bytes) -> Record | None:
    """Return the record of an undamaged line, else None."""
    digest, _, text = line.partition(b" ")
    if digest != _digest(text[:-1]):
        return None
    try:
        record: Record = finite_json(text.decode())
    except ValueError:
        return None
    return record


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_DIGEST_CHARS].encode()
