"""The files of bulk work on disk: rows to answer, and answers to rows.

    <root>/file-<hex>/record.json   `FileRecord`
                      content       its bytes

An uploaded file is built beside its place and renamed, so a reader never sees half of one. A file
of answers grows: its record has the bytes that readers may see.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from model_store.storage import refusal_is_an_error, remove, sweep, write_durably
from service.bulk.durable import flush, storing
from service.bulk.records import FileRecord
from service.errors import (
    BodyTooLargeError,
    FileInUseError,
    LimitExceededError,
    ServiceError,
    UnknownFileError,
    over_limit,
)
from service.principals.parts import has_room, part
from service.settings.bulk import BulkSettings

_RECORD, _CONTENT = "record.json", "content"
_STAGING = ".staging-"
_BLOCK_BYTES = 1 << 16
_CHECK_BYTES = 1 << 20  # of an upload, after which it is asked again whether there is room
_log = logging.getLogger(__name__)


class FileStore:
    """Owns the files below `root`; threads may share it.

    `root` belongs to the process that owns the adapter store beside it. Every call names a tenant,
    and what belongs to another one is as if it were not there.
    """

    def __init__(self, root: Path, settings: BulkSettings, *, shared: bool = False) -> None:
        """Use `root`, creating it, and remove what interrupted writes left.

        `shared` says that several tenants have files here. Raises `UnusableFolderError`.
        """
        self._root, self._settings, self._shared = root, settings, shared
        self._mutex = threading.Lock()
        self._uploads: set[Upload] = set()  # they arrive, and count already
        self._in_use: dict[str, int] = {}
        with refusal_is_an_error("files"):
            root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        self._records = {record.id: record for record in self._read()}

    def _read(self) -> Iterator[FileRecord]:
        for path in sorted(self._root.glob(f"*/{_RECORD}")):
            try:
                record = FileRecord(**json.loads(path.read_text("utf-8")))
            except (OSError, ValueError, TypeError) as error:
                _log.error("the file %s is left out: its record is damaged: %s", path.parent.name, error)
                continue
            if record.id == path.parent.name and (path.parent / _CONTENT).is_file():
                yield record

    def begin(self, filename: str, tenant: str) -> Upload:
        """Begin an upload.

        Raises `LimitExceededError` where there are too many files already, and `StoreFailedError`.
        """
        upload = Upload(self._root, filename, tenant, self._settings.max_file_bytes, self)
        with self._mutex:
            self._uploads.add(upload)
        try:
            self.check_room(tenant)
        except LimitExceededError:
            upload.discard()
            raise
        return upload

    def check_room(self, tenant: str, more_files: int = 0) -> None:
        """Raise `LimitExceededError` where a tenant has too much, counted with `more_files` files."""
        limits = self._settings
        with self._mutex:
            held: list[FileRecord | Upload] = [*self._records.values(), *self._uploads]
            own = [file for file in held if file.tenant == tenant]
            own_files, all_files = len(own) + more_files, len(held) + more_files
            own_bytes, all_bytes = (sum(file.bytes for file in files) for files in (own, held))
        if not has_room(own_files, all_files, limits.max_files, shared=self._shared):
            there = part(limits.max_files, "max_files", shared=self._shared)
            raise LimitExceededError(f"too many files are stored: {there}: delete some")
        if not has_room(own_bytes, all_bytes, limits.max_stored_file_bytes, shared=self._shared):
            there = part(limits.max_stored_file_bytes, "max_stored_file_bytes", shared=self._shared)
            raise LimitExceededError(
                f"the stored files and this one have too many bytes: {there}: delete some"
            )

    def forget(self, upload: Upload) -> None:
        """Count an upload no more."""
        with self._mutex:
            self._uploads.discard(upload)

    def finish(self, upload: Upload, purpose: str, lifetime_seconds: float) -> FileRecord:
        """Make a file of an upload, which is on the disk then.

        Raises `LimitExceededError` and `StoreFailedError`.
        """
        self.check_room(upload.tenant)
        now = time.time()
        record = FileRecord(
            upload.id, upload.tenant, purpose, upload.filename, upload.bytes, now, now + lifetime_seconds
        )
        with storing("the file"):
            upload.close()
            write_durably(upload.folder / _RECORD, json.dumps(asdict(record)))
            upload.folder.rename(self._root / record.id)
            flush(self._root)
        with self._mutex:
            self._records[record.id] = record
            self._uploads.discard(upload)
        return record

    def ensure(self, record: FileRecord) -> None:
        """Make an empty file of this record, where there is none. Raises `OSError`."""
        folder = self._root / record.id
        folder.mkdir(exist_ok=True)
        (folder / _CONTENT).touch()
        if record.id not in self._records:
            write_durably(folder / _RECORD, json.dumps(asdict(record)))
            flush(self._root)
            with self._mutex:
                self._records[record.id] = record

    def set_bytes(self, file_id: str, count: int) -> None:
        """Let readers see the first `count` bytes of a file of answers."""
        with self._mutex:
            self._records[file_id] = replace(self._records[file_id], bytes=count)

    def seal(self, file_id: str, expires_at: float) -> None:
        """Write the record of a file of answers that grows no more. Raises `OSError`."""
        record = replace(self._records[file_id], expires_at=expires_at)
        write_durably(self._root / file_id / _RECORD, json.dumps(asdict(record)))
        with self._mutex:
            self._records[file_id] = record

    def get(self, file_id: str, tenant: str) -> FileRecord:
        """Return the record of a file. Raises `UnknownFileError`."""
        record = self._records.get(file_id)
        if record is None or record.tenant != tenant or self._is_over(record, time.time()):
            raise UnknownFileError(f"there is no file {file_id!r:.100}", "file_id")
        return record

    def path(self, file_id: str) -> Path:
        """Return where the bytes of a file lie, which `get` has found."""
        return self._root / file_id / _CONTENT

    def content(self, record: FileRecord) -> Iterator[bytes]:
        """Return the bytes of a file, as many as its record has, in blocks of 64 KiB.

        The file is open when this returns. Raises `UnknownFileError` where it was deleted
        meanwhile.
        """
        try:
            file = self.path(record.id).open("rb")
        except FileNotFoundError as error:
            raise UnknownFileError(f"there is no file {record.id!r}", "file_id") from error
        return _blocks(file, record.bytes)

    def owned(self, tenant: str, purpose: str | None = None) -> list[FileRecord]:
        """Return the records of a tenant's files, the latest first."""
        now = time.time()
        found = [
            record
            for record in list(self._records.values())
            if record.tenant == tenant
            and purpose in {None, record.purpose}
            and not self._is_over(record, now)
        ]
        return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)

    def hold(self, *file_ids: str) -> None:
        """Keep files from being deleted, until `release`."""
        with self._mutex:
            for file_id in file_ids:
                self._in_use[file_id] = self._in_use.get(file_id, 0) + 1

    def release(self, *file_ids: str) -> None:
        """Allow files to be deleted again."""
        with self._mutex:
            for file_id in file_ids:
                self._in_use[file_id] -= 1
                if not self._in_use[file_id]:
                    del self._in_use[file_id]

    def delete(self, file_id: str, tenant: str) -> None:
        """Delete a file, on the disk too. Raises `UnknownFileError` and `FileInUseError`."""
        self.get(file_id, tenant)
        if file_id in self._in_use:
            raise FileInUseError("a batch that has not ended uses this file: cancel it first", "file_id")
        self.drop(file_id)

    def drop(self, file_id: str) -> None:
        """Delete a file, if it is there. Raises `StoreFailedError`, and the file stays."""
        with self._mutex:
            record = self._records.pop(file_id, None)
        try:
            with storing("the deletion of the file"):
                remove(self._root / file_id)
        except ServiceError:
            if record is not None:
                with self._mutex:
                    self._records[file_id] = record
            raise

    def delete_expired(self) -> None:
        """Delete the files whose time is over, on the disk too."""
        now = time.time()
        for record in list(self._records.values()):
            if self._is_over(record, now):
                self.drop(record.id)

    def _is_over(self, record: FileRecord, now: float) -> bool:
        return now >= record.expires_at and record.id not in self._in_use


class Upload:
    """A file that arrives. It has at most `max_bytes` bytes, and no more than `store` has room for."""

    def __init__(self, root: Path, filename: str, tenant: str, max_bytes: int, store: FileStore) -> None:
        self.id, self.filename, self.tenant, self.bytes = f"file-{uuid.uuid4().hex}", filename, tenant, 0
        self.folder = root / f"{_STAGING}{self.id}"
        self._max_bytes, self._store = max_bytes, store
        self._next_check = _CHECK_BYTES
        with storing("the file"):
            self.folder.mkdir()
            self._file: IO[bytes] = (self.folder / _CONTENT).open("wb")

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises `BodyTooLargeError`, `LimitExceededError` for more than there is room for, and
        `StoreFailedError`.
        """
        self.bytes += len(data)
        if self.bytes > self._max_bytes:
            limit = f"{self._max_bytes} bytes"
            raise BodyTooLargeError(over_limit("the file is too large", limit, "max_file_bytes"))
        if self.bytes >= self._next_check:
            self._next_check = self.bytes + _CHECK_BYTES
            self._store.check_room(self.tenant)
        with storing("the file"):
            self._file.write(data)

    def close(self) -> None:
        """Put all bytes on the disk. Raises `OSError`."""
        self._file.close()
        flush(self.folder / _CONTENT)

    def discard(self) -> None:
        """Leave nothing behind. Does nothing once the upload is a file."""
        self._store.forget(self)
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _blocks(file: IO[bytes], count: int) -> Iterator[bytes]:
    with file:
        while count > 0 and (block := file.read(min(count, _BLOCK_BYTES))):
            count -= len(block)
            yield block
