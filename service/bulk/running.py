"""Runs one batch: reads its rows, has them answered in order, and puts the answers on the disk."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from service.bulk.answering import answer_group, expired_line
from service.bulk.contract import Endpoint
from service.bulk.grouping import ReadRow, groups
from service.bulk.lines import Place, Row, rows
from service.bulk.outputs import Line, Outputs
from service.bulk.records import Progress
from service.errors import ServiceError, from_exception
from service.principals.records import Principal

COMMIT_SECONDS = 0.5
"""Answers are on the disk after so long, or earlier where they have `COMMIT_BYTES`."""
COMMIT_BYTES = 1 << 22
_EXPIRED_AT_ONCE = 1000
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """What a batch does: its rows, where they are sent and for whom, and how much at a time.

    `owner` returns who asks now, and raises `UnauthenticatedError` where nobody may any more.
    """

    batch_id: str
    endpoint: Endpoint
    url: str
    owner: Callable[[], Principal]
    path: Path
    max_line_bytes: int
    most_queries: int
    groups_at_once: int


class BatchRun:
    """One run of a batch, from where the last one ended. Used from one event loop."""

    def __init__(
        self, work: Work, outputs: Outputs, on_progress: Callable[[Progress, str | None], object]
    ) -> None:
        """Call `on_progress` when answers are on the disk, or with why the disk takes none."""
        self._work, self._outputs, self._on_progress = work, outputs, on_progress
        self._committed_at = time.monotonic()

    async def finish(self) -> None:
        """Answer all rows that are left.

        Raises `PausedError` and `UnauthenticatedError`. Where this raises, or is cancelled, `leave`
        keeps what was answered.
        """
        pending: deque[asyncio.Task[list[Line]]] = deque()
        waiting = self._groups()
        try:
            while True:
                while len(pending) < self._work.groups_at_once:
                    group = await asyncio.to_thread(next, waiting, None)
                    if group is None:
                        break
                    owner = self._work.owner()
                    answer = answer_group(self._work.endpoint, self._work.batch_id, group, owner)
                    pending.append(asyncio.create_task(answer))
                if not pending:
                    break
                for line in await pending[0]:
                    self._outputs.add(line)
                pending.popleft()
                if self._is_due():
                    await self.commit()
            await self.commit()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def expire(self) -> None:
        """Write for every row that is left that the batch did not come to it."""
        await self.commit()
        left = self._rows()
        while some := await asyncio.to_thread(lambda: list(itertools.islice(left, _EXPIRED_AT_ONCE))):
            for row in some:
                self._outputs.add(expired_line(self._work.batch_id, row))
            await self.commit()

    async def commit(self) -> None:
        """Put the answers on the disk; where it refuses, wait and try again until it takes them."""
        wait = 1.0
        while True:
            try:
                progress = await in_thread(self._outputs.commit)
            except OSError as error:
                log.error("batch %s waits for the disk: %s", self._work.batch_id, error)
                self._on_progress(self._outputs.committed, f"waits for the disk: {error.strerror}")
                await asyncio.sleep(wait)
                wait = min(2 * wait, 60.0)
            else:
                self._committed_at = time.monotonic()
                self._on_progress(progress, None)
                return

    async def leave(self) -> None:
        """Put what is answered on the disk if it takes it; the next run does again what is missing."""
        with suppress(OSError):
            self._on_progress(await in_thread(self._outputs.commit), None)

    def _is_due(self) -> bool:
        late = time.monotonic() - self._committed_at >= COMMIT_SECONDS
        return late or self._outputs.waiting_bytes >= COMMIT_BYTES

    def _rows(self) -> Iterator[Row]:
        done = self._outputs.committed
        start = Place(done.offset, done.line)
        return rows(self._work.path, self._work.url, self._work.max_line_bytes, start)

    def _groups(self) -> Iterator[list[ReadRow]]:
        return groups(map(self._read, self._rows()), self._work.most_queries)

    def _read(self, row: Row) -> ReadRow:
        try:
            return ReadRow(row, self._work.endpoint.read(row.body))
        except Exception as error:  # a row of a batch must not end the others
            if not isinstance(error, ServiceError):
                log.exception("line %d of batch %s could not be read", row.line, self._work.batch_id)
            return ReadRow(row, from_exception(error))


async def in_thread(work: Callable[[], T], stop: Callable[[], object] = lambda: None) -> T:
    """Return the result of `work`, and wait for its end too where this is cancelled meanwhile.

    A thread cannot be stopped, and must not go on unnoticed. `stop` tells it to end early then.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        await asyncio.gather(task, return_exceptions=True)
        raise
