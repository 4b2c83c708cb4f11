"""The durable journals of gates: one folder for each adapter id.

    <root>/adp_<hex>/journal.jsonl   one record a line, after the first digits of its digest
    <root>/.damaged/                 journals with a record that does not match its digest

This file does not know what a record means. A journal is begun whole (see `storage.staged`), then
appended to. A record counts once `append` has returned: it is on the disk by then. Damaged journals
are kept for whoever investigates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from model_store.adapters.manifest import ADAPTER_ID
from model_store.storage import refusal_is_an_error, remove, staged, sweep
from model_store.tensors import canonical_json

Record: TypeAlias = Mapping[str, Any]
_JOURNAL = "journal.jsonl"
_DAMAGED = ".damaged"
_DIGEST_CHARS = 16
_log = logging.getLogger(__name__)


class GateJournals:
    """Owns the journals below `root`; threads may share it.

    `root` belongs to the process that owns the adapter store beside it. A writer that was killed,
    or that ran out of disk, may leave the beginning of a record after the last acknowledged one: it
    is cut off. Any other damage moves the journal aside, as if it had never been there.
    """

    def __init__(self, root: Path) -> None:
        """Use `root`, creating it, and remove what interrupted writes left.

        Raises `UnusableFolderError`.
        """
        with refusal_is_an_error("calibrations"):
            root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._mutex = threading.Lock()
        self._lengths: dict[str, int] = {}  # acknowledged bytes of each journal
        sweep(root)

    def begin(self, adapter_id: str, records: Sequence[Record]) -> None:
        """Write a journal of `records`, in place of the adapter's if it has one.

        Raises `StorageFullError`, with the old journal kept, and `ValueError` for a text that is no
        adapter id.
        """
        folder = self._folder(adapter_id)
        if folder is None:
            raise ValueError(f"not an adapter id: {adapter_id!r}")
        content = b"".join(map(_line, records))
        with self._mutex:
            with staged(folder, f"the calibration of {adapter_id}") as staging:
                (staging / _JOURNAL).write_bytes(content)
            self._lengths[adapter_id] = len(content)

    def append(self, adapter_id: str, record: Record) -> None:
        """Add `record` durably.

        Raises `StorageFullError`, and `LookupError` where there is no journal.
        """
        line = _line(record)
        with self._mutex:
            if adapter_id not in self._lengths and self._read(adapter_id) is None:
                raise LookupError(f"{adapter_id!r} has no calibration")
            length = self._lengths[adapter_id]
            with (
                refusal_is_an_error(f"the calibration of {adapter_id}"),
                (self._root / adapter_id / _JOURNAL).open("r+b") as file,
            ):
                file.truncate(length)
                file.seek(length)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self._lengths[adapter_id] = length + len(line)

    def read(self, adapter_id: str) -> list[Record] | None:
        """Return all records in their order; None where there is no intact journal.

        `adapter_id` may be any text.
        """
        with self._mutex:
            return self._read(adapter_id)

    def delete(self, adapter_id: str) -> bool:
        """Remove the journal durably, and return whether there was one."""
        folder = self._folder(adapter_id)
        if folder is None:
            return False
        with self._mutex:
            self._lengths.pop(adapter_id, None)
            return remove(folder)

    def _folder(self, adapter_id: str) -> Path | None:
        return self._root / adapter_id if ADAPTER_ID.fullmatch(adapter_id) else None

    def _read(self, adapter_id: str) -> list[Record] | None:
        folder = self._folder(adapter_id)
        if folder is None or not folder.is_dir():
            return None
        try:
            content = (folder / _JOURNAL).read_bytes()
        except FileNotFoundError:
            content = b""
        lines = content.splitlines(keepends=True)
        records = [_record(line) for line in lines]
        if records and records[-1] is None:
            _log.warning("the calibration of %s ended in half a record, which is cut off", adapter_id)
            del records[-1], lines[-1]
        intact = [record for record in records if record is not None]
        if not intact or len(intact) < len(records):
            _log.error("the calibration of %s is damaged and moved aside", adapter_id)
            self._lengths.pop(adapter_id, None)
            damaged = self._root / _DAMAGED
            damaged.mkdir(exist_ok=True)
            folder.rename(damaged / f"{adapter_id}-{uuid.uuid4().hex[:8]}")
            return None
        self._lengths[adapter_id] = sum(map(len, lines))
        return intact


def _line(record: Record) -> bytes:
    text = canonical_json(record)
    return b"%s %s\n" % (_digest(text), text)


def _record(line: bytes) -> Record | None:
    """Return the record of a whole and undamaged line, else None."""
    digest, _, text = line.partition(b" ")
    if not line.endswith(b"\n") or digest != _digest(text[:-1]):
        return None
    record: Record = json.loads(text)
    return record


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_DIGEST_CHARS].encode()
