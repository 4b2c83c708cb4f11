"""Answers a group of rows: together if that works, else one by one, each with its own error."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence

from service.bulk.contract import Endpoint, RowRequest
from service.bulk.grouping import ReadRow
from service.bulk.lines import Row
from service.bulk.outputs import Line
from service.errors import (
    DrainingError,
    LoadFailedError,
    QueueFullError,
    RateLimitedError,
    ServiceError,
    StartingError,
    from_exception,
)
from service.principals.records import Principal

TRIES = 3
"""How often a row is tried that fails in a way that may pass, such as a lost worker."""
_LONGEST_WAIT_SECONDS = 5.0
log = logging.getLogger(__name__)


class PausedError(Exception):
    """The server accepts no work now; the batch goes on when it starts again."""


def request_id(batch_id: str, row: Row) -> str:
    """Return the id of a row's request."""
    return f"batch_req_{batch_id.removeprefix('batch_')}_{row.line}"


async def answer_group(
    endpoint: Endpoint, batch_id: str, group: Sequence[ReadRow], owner: Principal
) -> list[Line]:
    """Return the line of each row. Raises `PausedError`."""
    asked = [(read.row, read.asked) for read in group if isinstance(read.asked, RowRequest)]
    ids = [request_id(batch_id, row) for row, _ in asked]
    answers: dict[int, str | ServiceError] = {}
    try:
        found = await _answer(endpoint, [request for _, request in asked], ids, owner) if asked else []
        answers = {row.line: text for (row, _), text in zip(asked, found, strict=True)}
    except ServiceError as error:
        if len(asked) == 1:
            answers[asked[0][0].line] = error
        for (row, request), id in zip(asked, ids, strict=True) if len(asked) > 1 else ():
            try:
                (answers[row.line],) = await _answer(endpoint, [request], [id], owner)
            except ServiceError as alone:
                answers[row.line] = alone
    lines = []
    for read in group:
        answer = read.asked if isinstance(read.asked, ServiceError) else answers[read.row.line]
        id = request_id(batch_id, read.row)
        if isinstance(answer, ServiceError):
            status, text = endpoint.refusal(answer, id)
        else:
            status, text = 200, answer
        lines.append(_line(read.row, id, status, text))
    return lines


async def _answer(
    endpoint: Endpoint, asked: Sequence[RowRequest], ids: Sequence[str], owner: Principal
) -> Sequence[str]:
    """Return the answers. What may pass is tried again. Raises `ServiceError` and `PausedError`."""
    tries = 0
    while True:
        try:
            return await endpoint.answer(asked, ids, owner)
        except (DrainingError, LoadFailedError) as error:
            raise PausedError from error
        except Exception as raised:
            if not isinstance(raised, ServiceError):
                log.exception("rows from request %s on failed", ids[0])
            failure = from_exception(raised)
            tries += not isinstance(failure, QueueFullError | RateLimitedError | StartingError)
            if not failure.retryable or tries >= TRIES:
                raise failure from raised
            wait = 0.5 if isinstance(failure, StartingError) else failure.retry_after_seconds or tries
            await asyncio.sleep(min(wait, _LONGEST_WAIT_SECONDS))


def _line(row: Row, id: str, status: int, body: str) -> Line:
    response = f'{{"status_code": {status}, "request_id": "{id}", "body": {body}}}'
    return _written(row, id, response, "null", answered=status == 200)


def expired_line(batch_id: str, row: Row) -> Line:
    """Return the line of a row that the batch did not come to."""
    error = {"code": "batch_expired", "message": "the completion window ended before this row was answered"}
    return _written(row, request_id(batch_id, row), "null", json.dumps(error), answered=False)


def _written(row: Row, id: str, response: str, error: str, *, answered: bool) -> Line:
    custom_id = json.dumps(row.custom_id)
    text = f'{{"id": "{id}", "custom_id": {custom_id}, "response": {response}, "error": {error}}}\n'
    return Line(text.encode(), answered, row.end, row.line)
