"""The durable journals of gates: one folder for each adapter id.

    <root>/adp_<hex>/journal.jsonl   one record a line, after the first digits of its digest
    <root>/.damaged/                 journals that cannot be read

This file does not know what a record means; a reader that does may have a journal moved aside. A
journal is begun whole (see `storage.staged`), then appended to. A record counts once `append` has
returned: it is on the disk by then. Damaged journals are kept for whoever investigates.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from model_store.adapters.findings import Finding, verify_each
from model_store.adapters.manifest import ADAPTER_ID
from model_store.errors import CorruptArtifactError, NonFiniteError
from model_store.storage import finite_json, refusal_is_an_error, remove, staged, sweep
from model_store.tensors import canonical_json

Record: TypeAlias = Mapping[str, Any]
_JOURNAL = "journal.jsonl"
_DAMAGED = ".damaged"
_DIGEST_CHARS = 16
_log = logging.getLogger(__name__)


class GateJournals:
    """Owns the journals below `root`; threads may share it.

    `root` belongs to the process that owns the adapter store beside it. A writer that was killed,
    or that ran out of disk, may leave the beginning of a record, without its end of line, after the
    last acknowledged one: it is cut off. Any other damage moves the journal aside, as if it had never been there.
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

        Raises `StorageFullError` and `NonFiniteError`, with the old journal kept, and `ValueError`
        for a text that is no adapter id.
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

        Raises `StorageFullError` and `NonFiniteError`, and `LookupError` where there is no journal.
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

    def verify(self, check: Callable[[str, Sequence[Record]], object]) -> tuple[int, Sequence[Finding]]:
        """Read every journal whole; return how many are intact, and what is wrong with the others.

        `check` gets an adapter id and its records. It raises `CorruptArtifactError` or
        `UnsupportedFormatError` where they mean nothing. Damaged journals are moved aside.
        """
        with self._mutex:
            ids = sorted(path.name for path in self._root.iterdir() if ADAPTER_ID.fullmatch(path.name))
            return verify_each(ids, lambda id: check(id, self._load(id)), self._move_aside)

    def move_aside(self, adapter_id: str, error: CorruptArtifactError) -> None:
        """Move a journal aside whose records mean nothing, as `error` says."""
        with self._mutex:
            self._move_aside(adapter_id, error)

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
            return self._load(adapter_id)
        except CorruptArtifactError as error:
            self._move_aside(adapter_id, error)
            return None

    def _load(self, adapter_id: str) -> list[Record]:
        """Return the records of a journal that is there. Raises `CorruptArtifactError`."""
        try:
            content = (self._root / adapter_id / _JOURNAL).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise CorruptArtifactError(f"the calibration of {adapter_id} has no {_JOURNAL}") from error
        lines = content.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            _log.warning("the calibration of %s ended in half a record, which is cut off", adapter_id)
            del lines[-1]
        if not lines:
            raise CorruptArtifactError(f"the calibration of {adapter_id} is empty")
        records = []
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is None:
                raise CorruptArtifactError(f"the calibration of {adapter_id} is damaged: record {number}")
            records.append(record)
        self._lengths[adapter_id] = sum(map(len, lines))
        return records

    def _move_aside(self, adapter_id: str, error: CorruptArtifactError) -> None:
        _log.error("%s is moved aside: %s", adapter_id, error)
        self._lengths.pop(adapter_id, None)
        damaged = self._root / _DAMAGED
        damaged.mkdir(exist_ok=True)
        (self._root / adapter_id).rename(damaged / f"{adapter_id}-{uuid.uuid4().hex[:8]}")


def _line(record: Record) -> bytes:
    try:
        text = canonical_json(record, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"a record of a calibration has a number that is not finite: {error}") from error
    return b"%s %s\n" % (_digest(text), text)


def _record(line: bytes) -> Record | None:
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
