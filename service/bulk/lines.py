"""Reads the rows of an input file line by line, in bounded memory."""

from __future__ import annotations

import hashlib
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from service.bulk.records import LineError
from service.errors import over_limit

MOST_ERRORS = 100
"""Most errors of an input file that are reported."""
MAX_ID_CHARS = 512
_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class Row:
    """A request on one line. `end` is the offset in bytes behind the line."""

    line: int
    end: int
    custom_id: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where to go on reading: `offset` bytes behind `line` lines."""

    offset: int = 0
    line: int = 0


class StoppedError(Exception):
    """Nobody wants to know what is in the file any more."""


class LineRefusedError(ValueError):
    """A line is no row; the text says why."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def rows(path: Path, url: str, max_line_bytes: int, start: Place = Place()) -> Iterator[Row]:
    """Yield the rows of a file that `check_file` found right. Raises `LineRefusedError` otherwise."""
    for line, end, text in _lines(path, max_line_bytes, start):
        if text != b"":
            custom_id, body = _read(text, url, max_line_bytes)
            yield Row(line, end, custom_id, body)


def check_file(
    path: Path,
    url: str,
    max_line_bytes: int,
    max_rows: int,
    is_stopped: Callable[[], bool] = lambda: False,
) -> tuple[int, tuple[LineError, ...]]:
    """Return the number of rows, and what is wrong with them: at most `MOST_ERRORS` errors.

    Rows are sent to the path `url`, and have different ids. As many lines as rows may be blank.
    Needs 16 bytes a row. Raises `StoppedError` soon after `is_stopped`.
    """
    digests, errors, count = array("Q"), list[LineError](), 0
    for line, _, text in _lines(path, max_line_bytes, Place(), is_stopped):
        if line > 2 * max_rows:
            found = f"the file has more than {2 * max_rows} lines, blank ones included"
            return count, (LineError("too_many_lines", over_limit(found, max_rows, "max_batch_rows"), line),)
        if text == b"":
            continue
        count += 1
        if count > max_rows:
            message = over_limit(f"the file has more than {max_rows} rows", max_rows, "max_batch_rows")
            return count, (LineError("too_many_rows", message, line),)
        try:
            custom_id, _ = _read(text, url, max_line_bytes)
        except LineRefusedError as error:
            errors.append(LineError(error.code, str(error), line, error.param))
            if len(errors) >= MOST_ERRORS:
                return count, tuple(errors)
            continue
        digests.append(_digest(custom_id))
    if not count:
        return 0, (LineError("empty_file", "the file has no rows"),)
    repeated = _repeated(digests)
    if repeated:
        lines = _lines(path, max_line_bytes, Place(), is_stopped)
        errors += _repetitions(lines, url, max_line_bytes, repeated, MOST_ERRORS - len(errors))
    return count, tuple(sorted(errors, key=lambda error: error.line or 0))


def _lines(
    path: Path, max_bytes: int, start: Place, is_stopped: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield each line: its number, the offset behind it, and its bytes, which a blank one has none
    of.

    Of a line of more than `max_bytes`, None stands for the bytes. Raises `StoppedError`.
    """
    number = start.line
    with path.open("rb") as file:
        file.seek(start.offset)
        while part := file.readline(max_bytes + 2):
            if is_stopped():
                raise StoppedError
            number += 1
            whole = part.endswith(b"\n") or len(part) < max_bytes + 2
            while not part.endswith(b"\n") and (part_of_rest := file.readline(max_bytes)):
                part = part_of_rest
            yield number, file.tell(), part.removeprefix(BOM_UTF8).strip(b" \t\r\n") if whole else None


def _read(text: bytes | None, url: str, max_bytes: int) -> tuple[str, Mapping[str, Any]]:
    if text is None or len(text) > max_bytes:
        message = over_limit("the line is too long", f"{max_bytes} bytes", "max_body_bytes")
        raise LineRefusedError("line_too_long", message)
    try:
        row = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise LineRefusedError("invalid_json_line", f"the line is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise LineRefusedError("invalid_json_line", "the line is not a JSON object")
    for name in _FIELDS:
        if name not in row:
            raise LineRefusedError("missing_required_parameter", f"the row has no {name!r}", name)
    if unknown := next((name for name in row if name not in _FIELDS), None):
        raise LineRefusedError("unknown_parameter", f"a row has no field {unknown!r:.80}", f"{unknown:.80}")
    custom_id, body = row["custom_id"], row["body"]
    if not isinstance(custom_id, str) or not custom_id or len(custom_id) > MAX_ID_CHARS:
        message = f"custom_id is a text of 1 to {MAX_ID_CHARS} characters"
        raise LineRefusedError("invalid_value", message, "custom_id")
    if row["method"] != "POST":
        raise LineRefusedError("invalid_method", "method is 'POST'", "method")
    if row["url"] != url:
        message = f"url is {row['url']!r:.80}, and the batch's endpoint is {url!r}"
        raise LineRefusedError("mismatched_endpoint", message, "url")
    if not isinstance(body, dict):
        raise LineRefusedError("invalid_value", "body is a JSON object", "body")
    return custom_id, body


def _digest(custom_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=8).digest())


def _repeated(digests: array[int]) -> frozenset[int]:
    """Return the digests that are there more than once."""
    ordered = np.frombuffer(digests, dtype=np.uint64) if digests else np.empty(0, dtype=np.uint64)
    ordered = np.sort(ordered)
    return frozenset(ordered[1:][ordered[1:] == ordered[:-1]].tolist()[:MOST_ERRORS])


def _repetitions(
    lines: Iterable[tuple[int, int, bytes | None]],
    url: str,
    max_bytes: int,
    repeated: frozenset[int],
    most: int,
) -> Iterator[LineError]:
    """Yield an error for rows whose id an earlier row has, of the ids with these digests."""
    first: dict[str, int] = {}
    for line, _, text in lines:
        try:
            custom_id, _ = _read(text, url, max_bytes)
        except LineRefusedError:
            continue
        if most <= 0 or _digest(custom_id) not in repeated:
            continue
        if custom_id in first:
            message = f"custom_id {custom_id!r:.80} is that of line {first[custom_id]} already"
            yield LineError("duplicate_custom_id", message, line, "custom_id")
            most -= 1
        first.setdefault(custom_id, line)
