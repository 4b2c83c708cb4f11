"""The batches on disk.

<root>/batch_<hex>/batch.json      `BatchRecord`, replaced whole
                   progress.json   `Progress` of a batch that runs, replaced whole
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from model_store.storage import refusal_is_an_error, remove, staged, sweep, write_durably
from service.bulk.durable import storing
from service.bulk.records import BatchRecord
from service.errors import LimitExceededError, UnknownBatchError
from service.principals.parts import has_room, part

_RECORD, _PROGRESS = "batch.json", "progress.json"
_log = logging.getLogger(__name__)


class BatchStore:
    """Owns the batches below `root`; threads may share it.

    `root` belongs to the process that owns the adapter store beside it. Once a call has returned,
    what it wrote survives a crash.
    """

    def __init__(self, root: Path, max_batches: int, *, shared: bool = False) -> None:
        """Use `root`, creating it, and remove what interrupted writes left.

        `shared` says that several tenants have batches here. Raises `UnusableFolderError`.
        """
        self._root, self._max_batches, self._shared = root, max_batches, shared
        self._mutex = threading.Lock()
        with refusal_is_an_error("batches"):
            root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        self._records = {record.id: record for record in self._read()}

    def _read(self) -> Iterator[BatchRecord]:
        for path in sorted(self._root.glob(f"*/{_RECORD}")):
            try:
                record = BatchRecord.from_json(json.loads(path.read_text("utf-8")))
            except (OSError, ValueError, TypeError, KeyError) as error:
                _log.error("the batch %s is left out: its record is damaged: %s", path.parent.name, error)
                continue
            if record.id == path.parent.name:
                yield record

    def add(self, record: BatchRecord) -> None:
        """Store a new batch. Of too many of a tenant, its oldest one that has ended is deleted.

        Raises `LimitExceededError` where none has, and `StoreFailedError`.
        """
        with self._mutex, storing("the batch"):
            if not self._has_room(record.tenant, 1):
                ended = self._ended(record.tenant)
                if not ended:
                    there = part(self._max_batches, "max_batches", shared=self._shared)
                    raise LimitExceededError(f"too many batches wait or run: {there}")
                oldest = min(ended, key=lambda old: old.created_at)
                remove(self._root / oldest.id)
                del self._records[oldest.id]
            with staged(self._root / record.id, "the batch") as folder:
                (folder / _RECORD).write_text(json.dumps(record.to_json()), "utf-8")
            self._records[record.id] = record

    def _has_room(self, tenant: str, more: int) -> bool:
        own = sum(record.tenant == tenant for record in self._records.values())
        total = len(self._records) + more
        return has_room(own + more, total, self._max_batches, shared=self._shared)

    def _ended(self, tenant: str) -> list[BatchRecord]:
        """Return what may go for a batch of the tenant: its own, else of those that have too much."""
        ended = [old for old in self._records.values() if old.status.ended]
        own = [old for old in ended if old.tenant == tenant]
        return own or [old for old in ended if not self._has_room(old.tenant, 0)]

    def put(self, record: BatchRecord) -> None:
        """Store a batch in place of what it was. Raises `StoreFailedError`."""
        with self._mutex:
            with storing("the batch"):
                write_durably(self._root / record.id / _RECORD, json.dumps(record.to_json()))
            self._records[record.id] = record

    def get(self, batch_id: str, tenant: str) -> BatchRecord:
        """Return a batch of the tenant. Raises `UnknownBatchError`."""
        record = self._records.get(batch_id)
        if record is None or record.tenant != tenant:
            raise UnknownBatchError(f"there is no batch {batch_id!r:.100}", "batch_id")
        return record

    def all(self) -> list[BatchRecord]:
        """Return the batches of all tenants, the latest first."""
        found = list(self._records.values())
        return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)

    def owned(self, tenant: str) -> list[BatchRecord]:
        """Return the batches of a tenant, the latest first."""
        return [record for record in self.all() if record.tenant == tenant]

    def delete_ended(self, before: float) -> None:
        """Delete the batches that had ended before this time. Raises `StoreFailedError`."""
        for record in self.all():
            if record.status.ended and record.ended_at < before:
                with self._mutex, storing("that a batch is deleted"):
                    remove(self._root / record.id)
                    self._records.pop(record.id, None)

    def progress_path(self, batch_id: str) -> Path:
        """Return where the progress of a batch lies."""
        return self._root / batch_id / _PROGRESS
