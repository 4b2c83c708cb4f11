"""Owns the bulk work of one server: which batches run, and what becomes of them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from model_store.errors import StoreError
from service.bulk.answering import PausedError
from service.bulk.batches import BatchStore
from service.bulk.contract import Endpoint
from service.bulk.files import FileStore
from service.bulk.grouping import GROUP_QUERIES
from service.bulk.lines import LineRefusedError, check_file
from service.bulk.outputs import OutputLostError, Outputs, read_progress
from service.bulk.records import INPUT, OUTPUT, BatchRecord, FileRecord, LineError, Progress, Status
from service.bulk.running import BatchRun, Work, in_thread
from service.errors import BatchEndedError, InvalidRequestError, ServiceError, UnauthenticatedError
from service.metrics import Metrics
from service.principals.records import Principal
from service.settings import Settings

SWEEP_SECONDS = 60.0
"""How often expired files are deleted."""
_RETRY_SECONDS = 5.0
_CHECKS_AT_ONCE = 2  # each has a thread of those that requests need too
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchView:
    """A batch as it is now: its record, how far it is, and why it waits if it does.

    `rows_per_second` is since this process began to work on it.
    """

    record: BatchRecord
    progress: Progress
    problem: str | None = None
    rows_per_second: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds until all rows are done at this rate."""
        if not self.rows_per_second or self.record.status is not Status.IN_PROGRESS:
            return None
        return (self.record.total - self.progress.rows) / self.rows_per_second


@dataclass
class _Running:
    """A batch that waits or runs in this process."""

    task: asyncio.Task[None] | None = None
    progress: Progress = field(default_factory=Progress)
    began_at: float | None = None
    began_rows: int = 0
    problem: str | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class BulkWork:
    """Owns files and batches. Used from one event loop; the disk is used in threads.

    `start` goes on with the batches that the last process has left; `close` stops them where they
    are.
    """

    def __init__(
        self,
        settings: Settings,
        endpoints: Mapping[str, Endpoint],
        metrics: Metrics,
        now_of: Callable[[Principal], Principal] | None = None,
    ) -> None:
        """Use the data folder.

        With keys, `now_of` returns a principal with what its key allows now, and raises
        `UnauthenticatedError`. Raises `UnusableFolderError`.
        """
        self._settings, self._endpoints, self._metrics = settings, endpoints, metrics
        self._now_of = now_of or (lambda principal: principal)
        shared = now_of is not None
        self.files = FileStore(settings.files_dir, settings, shared=shared)
        self._batches = BatchStore(settings.batches_dir, settings.max_batches, shared=shared)
        self._running: dict[str, _Running] = {}
        self._places: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(settings.batches_at_once)
        )  # by tenant, so that none waits for another's batches
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self._sweeping: asyncio.Task[None] | None = None
        self._open = False
        for record in self._batches.all():
            if not record.status.ended:
                self._hold(record)
                self._running[record.id] = _Running(progress=self._stored_progress(record))

    @property
    def endpoints(self) -> list[str]:
        """Return the paths to which rows may be sent."""
        return sorted(self._endpoints)

    def start(self) -> None:
        """Go on with all batches that have not ended, and begin later ones when they come."""
        self._open = True
        self._sweeping = asyncio.create_task(self._sweep())
        for record in reversed(self._batches.all()):
            if record.id in self._running:
                self._launch(record.id)

    async def close(self) -> None:
        """Stop all batches; what was answered in order is on the disk."""
        self._open = False
        tasks = [running.task for running in self._running.values() if running.task]
        tasks += [self._sweeping] if self._sweeping else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what clients ask for

    async def create(
        self,
        *,
        owner: Principal,
        endpoint: str,
        input_file_id: str,
        window_seconds: float,
        completion_window: str,
        metadata: Mapping[str, str] | None,
        output_seconds: float | None,
    ) -> BatchView:
        """Begin a batch, which is on the disk when this returns.

        Raises `InvalidRequestError`, `UnknownFileError`, `LimitExceededError`, `StoreFailedError`.
        """
        if endpoint not in self._endpoints:
            known = ", ".join(self.endpoints)
            raise InvalidRequestError(f"rows cannot be sent to {endpoint!r:.80}, but to {known}", "endpoint")
        file = self.files.get(input_file_id, owner.tenant)
        if file.purpose != INPUT:
            message = f"the file has the purpose {file.purpose!r}, and rows to answer have {INPUT!r}"
            raise InvalidRequestError(message, "input_file_id")
        self.files.check_room(owner.tenant, more_files=2)
        now = time.time()
        record = BatchRecord(
            id=f"batch_{uuid.uuid4().hex}",
            tenant=owner.tenant,
            endpoint=endpoint,
            input_file_id=input_file_id,
            output_file_id=f"file-{uuid.uuid4().hex}",
            error_file_id=f"file-{uuid.uuid4().hex}",
            completion_window=completion_window,
            created_at=now,
            expires_at=now + window_seconds,
            metadata=metadata,
            output_seconds=output_seconds,
            key_id=owner.key_id,
            scopes=tuple(sorted(owner.scopes)),
            limits=owner.limits.model_dump(exclude_none=True),
        )
        self._hold(record)
        try:
            await asyncio.to_thread(self._batches.add, record)
        except BaseException:
            self._release(record)
            raise
        self._running[record.id] = _Running()
        if self._open:
            self._launch(record.id)
        return self.view(record)

    def get(self, batch_id: str, tenant: str) -> BatchView:
        """Return a batch as it is now. Raises `UnknownBatchError`."""
        return self.view(self._batches.get(batch_id, tenant))

    def owned(self, tenant: str) -> list[BatchView]:
        """Return a tenant's batches, the latest first."""
        return [self.view(record) for record in self._batches.owned(tenant)]

    def view(self, record: BatchRecord) -> BatchView:
        """Return the batch of a record as it is now."""
        running = self._running.get(record.id)
        if running is None or record.status.ended:
            return BatchView(record, record.progress)
        rate = None
        if running.began_at is not None:
            done = running.progress.rows - running.began_rows
            rate = done / max(1e-3, time.monotonic() - running.began_at)
        return BatchView(record, running.progress, running.problem, rate)

    async def cancel(self, batch_id: str, tenant: str) -> BatchView:
        """Stop a batch; what it has answered stays readable.

        Raises `UnknownBatchError`, `BatchEndedError` where it has ended already, and
        `StoreFailedError`.
        """
        record = self._batches.get(batch_id, tenant)
        running = self._running.get(batch_id)
        if running is None:
            raise BatchEndedError(f"the batch has ended already: it is {record.status}", "batch_id")
        async with running.changing:
            record = self._batches.get(batch_id, tenant)
            if record.status is Status.CANCELLING:
                return self.view(record)
            if running.task is not None:
                task, running.task = running.task, None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            record = self._batches.get(batch_id, tenant)
            if batch_id not in self._running:
                raise BatchEndedError(f"the batch has ended already: it is {record.status}", "batch_id")
            try:
                record = record.became(Status.CANCELLING)
                await in_thread(lambda: self._batches.put(record))
            finally:
                self._launch_if_open(batch_id)
        return self.view(record)

    # ---- the life of a batch

    def _launch(self, batch_id: str) -> None:
        running = self._running[batch_id]
        running.task = asyncio.create_task(self._live(batch_id))
        running.task.add_done_callback(lambda task: self._on_end(batch_id, task))

    def _on_end(self, batch_id: str, task: asyncio.Task[None]) -> None:
        """Begin again, later, what ended by an error of ours."""
        running = self._running.get(batch_id)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("batch %s is stopped, and tried again", batch_id, exc_info=error)
        if running is not None and running.task is task:
            running.problem = "stopped by an error of the server, and tried again"
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._launch_if_open, batch_id)

    def _launch_if_open(self, batch_id: str) -> None:
        running = self._running.get(batch_id)
        if self._open and running is not None and (running.task is None or running.task.done()):
            self._launch(batch_id)

    async def _live(self, batch_id: str) -> None:
        """Take a batch from its status to its end, or to where the server stops."""
        record = next(record for record in self._batches.all() if record.id == batch_id)
        if record.status is Status.CANCELLING:
            await self._end(record, Status.CANCELLED)
            return
        async with self._places[record.tenant]:
            try:
                self._now_of(record.owner)
                if record.status is Status.VALIDATING:
                    record = await self._validate(record)
                if not record.status.ended:
                    await self._run(record)
            except FileNotFoundError:
                await self._fail(record, "file_lost", "a file of the batch is not there")
            except UnauthenticatedError:
                await self._fail(
                    record, "invalid_api_key", "the key that began it was revoked, or has expired"
                )

    async def _validate(self, record: BatchRecord) -> BatchRecord:
        """Return the batch with its number of rows, or as failed with what is wrong with them."""
        settings, stopped = self._settings, threading.Event()
        check = partial(
            check_file,
            self.files.path(record.input_file_id),
            record.endpoint,
            settings.max_body_bytes,
            settings.max_batch_rows,
            stopped.is_set,
        )
        async with self._checks:
            total, errors = await in_thread(check, stopped.set)
        record = replace(record, total=total, errors=errors)
        if errors:
            return await self._end(record, Status.FAILED)
        return await self._set(record, Status.IN_PROGRESS)

    async def _run(self, record: BatchRecord) -> None:
        running = self._running[record.id]
        try:
            for file in self._output_files(record):
                await in_thread(partial(self.files.ensure, file))
            outputs = self._open_outputs(record)
        except OutputLostError as error:
            await self._fail(record, "output_lost", str(error))
            return
        work = Work(
            record.id,
            self._endpoints[record.endpoint],
            record.endpoint,
            lambda: self._now_of(record.owner),
            self.files.path(record.input_file_id),
            self._settings.max_body_bytes,
            min(GROUP_QUERIES, self._settings.max_inputs),
            2 * self._settings.workers,  # one for each that waits behind one that runs
        )
        running.began_at, running.began_rows = time.monotonic(), outputs.committed.rows
        run = BatchRun(work, outputs, lambda progress, problem: self._on_progress(record, progress, problem))
        try:
            try:
                async with asyncio.timeout(record.expires_at - time.time()) as window:
                    await run.finish()
            except TimeoutError:
                if not window.expired():
                    raise
                await run.expire()
                await self._end(record, Status.EXPIRED)
            except PausedError:
                await run.leave()
            except (asyncio.CancelledError, UnauthenticatedError):
                await run.leave()
                raise
            except LineRefusedError as error:
                await run.leave()
                await self._fail(record, "input_changed", f"the input file was changed: {error}")
            else:
                await self._end(await self._set(record, Status.FINALIZING), Status.COMPLETED)
        finally:
            outputs.close()

    def _on_progress(self, record: BatchRecord, progress: Progress, problem: str | None) -> None:
        running = self._running[record.id]
        self._metrics.batch_rows.labels("completed").inc(progress.completed - running.progress.completed)
        self._metrics.batch_rows.labels("failed").inc(progress.failed - running.progress.failed)
        running.progress, running.problem = progress, problem
        self.files.set_bytes(record.output_file_id, progress.output_bytes)
        self.files.set_bytes(record.error_file_id, progress.error_bytes)

    def _open_outputs(self, record: BatchRecord) -> Outputs:
        progress = self._batches.progress_path(record.id)
        outputs = Outputs(
            self.files.path(record.output_file_id), self.files.path(record.error_file_id), progress
        )
        done = outputs.committed
        self.files.set_bytes(record.output_file_id, done.output_bytes)
        self.files.set_bytes(record.error_file_id, done.error_bytes)
        return outputs

    def _output_files(self, record: BatchRecord) -> list[FileRecord]:
        expires_at = record.expires_at + self._settings.file_ttl_seconds  # sealed at the end
        now = time.time()
        return [
            FileRecord(id, record.tenant, OUTPUT, f"{record.id}_{kind}.jsonl", 0, now, expires_at)
            for id, kind in ((record.output_file_id, "output"), (record.error_file_id, "error"))
        ]

    async def _fail(self, record: BatchRecord, code: str, message: str) -> None:
        await self._end(replace(record, errors=(LineError(code, message),)), Status.FAILED)

    async def _end(self, record: BatchRecord, status: Status) -> BatchRecord:
        """Seal the files that have answers, delete empty ones, and then store the batch."""
        progress = await in_thread(lambda: self._stored_progress(record))
        await self._until_stored(lambda: self._seal(record, progress))
        try:
            return await self._set(replace(record, progress=progress), status)
        finally:
            if self._batches.get(record.id, record.tenant).status.ended:  # also if cancelled by then
                del self._running[record.id]
                self._release(record)
                self._metrics.batches.labels(status.value).inc()
                log.info("batch %s: %s, %d of %d rows", record.id, status, progress.rows, record.total)

    def _seal(self, record: BatchRecord, progress: Progress) -> None:
        lifetime = record.output_seconds or self._settings.file_ttl_seconds
        sizes = (record.output_file_id, progress.output_bytes), (record.error_file_id, progress.error_bytes)
        for file_id, size in sizes:
            if size:
                self.files.seal(file_id, time.time() + lifetime)
            else:
                self.files.drop(file_id)

    async def _set(self, record: BatchRecord, status: Status) -> BatchRecord:
        record = record.became(status)
        await self._until_stored(lambda: self._batches.put(record))
        return record

    async def _until_stored(self, store: Callable[[], object]) -> None:
        """Call `store` in a thread until the disk takes what it writes."""
        while True:
            try:
                await in_thread(store)
            except (ServiceError, OSError, StoreError) as error:
                log.error("a batch waits for the disk: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    def _hold(self, record: BatchRecord) -> None:
        self.files.hold(record.input_file_id, record.output_file_id, record.error_file_id)

    def _release(self, record: BatchRecord) -> None:
        self.files.release(record.input_file_id, record.output_file_id, record.error_file_id)

    def _stored_progress(self, record: BatchRecord) -> Progress:
        return read_progress(self._batches.progress_path(record.id))

    async def _sweep(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.files.delete_expired)
                before = time.time() - self._settings.file_ttl_seconds
                await asyncio.to_thread(self._batches.delete_ended, before)
            except Exception:  # what ends this task would have files stay for ever
                log.exception("expired files could not be deleted; it is tried again")
            await asyncio.sleep(SWEEP_SECONDS)
