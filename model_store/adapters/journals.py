"""Durable journals: one folder for each key, such as an adapter id or a name.

    <root>/<key>/journal.jsonl   one record a line, after the first digits of its digest
    <root>/.damaged/             journals that cannot be read

This file does not know what a record means; a reader that does may have a journal moved aside. A
journal is begun whole (see `storage.staged`), then appended to. A record counts once `append` has
returned: it is on the disk by then. Damaged journals are kept for whoever investigates.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from model_store.adapters.contract import ABSENT, Loaded, Mark, Record
from model_store.adapters.findings import Finding, verify_each
from model_store.adapters.journal_lines import decoded, encoded
from model_store.errors import CorruptArtifactError, JournalChangedError
from model_store.storage import DAMAGED, refusal_is_an_error, remove, staged, sweep

JOURNAL_FILE = "journal.jsonl"
_log = logging.getLogger(__name__)


class Journals:
    """Owns the journals below `root`; threads may share it.

    `keys` is the pattern of keys, which are names of folders and do not begin with a dot. `what`
    says in messages what a journal has of its key, such as "calibration".

    `root` belongs to the process that owns the adapter store beside it. A writer that was killed,
    or that ran out of disk, may leave the beginning of a record, without its end of line, after the
    last acknowledged one: it is cut off. Any other damage moves the journal aside, as if it had
    never been there.
    """

    def __init__(self, root: Path, keys: re.Pattern[str], what: str) -> None:
        """Use `root`, creating it, and remove what interrupted writes left.

        Raises `UnusableFolderError`.
        """
        with refusal_is_an_error(f"{what}s"):
            root.mkdir(parents=True, exist_ok=True)
        self._root, self._keys, self._what = root, keys, what
        self._mutex = threading.Lock()
        self._lengths: dict[str, int] = {}  # acknowledged bytes of each journal
        self._marks: dict[str, Mark] = {}  # of the same journals
        sweep(root)

    def begin(self, key: str, records: Sequence[Record], expected: Mark | None = None) -> Mark:
        """Write a journal of `records`, in place of the one that is there.

        Raises `StorageFullError` and `NonFiniteError`, with the old journal kept, and `ValueError`
        for a text that is no key.
        """
        folder = self._folder(key)
        if folder is None:
            raise ValueError(f"not a key of a {self._what}: {key!r}")
        content = b"".join(map(encoded, records))
        with self._mutex:
            self._check(key, expected)
            with staged(folder, f"the {self._what} of {key}") as staging:
                (staging / JOURNAL_FILE).write_bytes(content)
            self._lengths[key] = len(content)
            self._marks[key] = Mark(uuid.uuid4().hex, len(records))
            return self._marks[key]

    def append(self, key: str, record: Record, expected: Mark | None = None) -> Mark:
        """Add `record` durably.

        Raises `StorageFullError` and `NonFiniteError`, and `LookupError` where there is no journal.
        """
        line = encoded(record)
        with self._mutex:
            self._check(key, expected)
            if key not in self._lengths and self._read(key) is None:
                raise LookupError(f"{key!r} has no {self._what}")
            length = self._lengths[key]
            with (
                refusal_is_an_error(f"the {self._what} of {key}"),
                (self._root / key / JOURNAL_FILE).open("r+b", buffering=0) as file,
            ):
                file.truncate(length)
                file.seek(length)
                try:
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:  # what is refused must not be there after a restart
                    with suppress(OSError):
                        file.truncate(length)
                    raise
            self._lengths[key] = length + len(line)
            before = self._marks[key]
            self._marks[key] = Mark(before.begun, before.records + 1)
            return self._marks[key]

    def read(self, key: str) -> list[Record] | None:
        """Return all records in their order; None where there is no intact journal.

        `key` may be any text.
        """
        with self._mutex:
            return self._read(key)

    def load(self, key: str, since: Mark = ABSENT) -> Loaded | None:
        """Return the records behind `since`, or all where the journal was begun anew.

        Return None where there is no intact journal. `key` may be any text.
        """
        with self._mutex:
            records = self._read(key)
            if records is None:
                return None
            mark = self._marks[key]
            anew = since.begun != mark.begun
            return Loaded(records if anew else records[since.records :], mark, anew)

    def verify(self, check: Callable[[str, Sequence[Record]], object]) -> tuple[int, Sequence[Finding]]:
        """Read every journal whole; return how many are intact, and what is wrong with the others.

        `check` gets a key and its records. It raises `CorruptArtifactError` or
        `UnsupportedFormatError` where they mean nothing. Damaged journals are moved aside.
        """
        with self._mutex:
            return verify_each(self.keys(), lambda key: check(key, self._load(key)), self._move_aside)

    def keys(self) -> list[str]:
        """Return the keys of all journals, in their order."""
        return sorted(path.name for path in self._root.iterdir() if self._keys.fullmatch(path.name))

    def tags(self) -> Mapping[str, str]:
        """Return for each key a text that changes whenever its journal does."""
        return {key: str((self._root / key / JOURNAL_FILE).stat().st_mtime_ns) for key in self.keys()}

    def move_aside(self, key: str, error: CorruptArtifactError) -> None:
        """Move a journal aside whose records mean nothing, as `error` says."""
        with self._mutex:
            self._move_aside(key, error)

    def delete(self, key: str) -> bool:
        """Remove the journal durably, and return whether there was one."""
        folder = self._folder(key)
        if folder is None:
            return False
        with self._mutex:
            self._forget(key)
            return remove(folder)

    def _check(self, key: str, expected: Mark | None) -> None:
        """Raise `JournalChangedError` unless the journal is as expected."""
        if expected is not None:
            if key not in self._marks:
                self._read(key)
            if self._marks.get(key, ABSENT) != expected:
                raise JournalChangedError(f"the {self._what} of {key} has changed")

    def _forget(self, key: str) -> None:
        self._lengths.pop(key, None)
        self._marks.pop(key, None)

    def _folder(self, key: str) -> Path | None:
        return self._root / key if self._keys.fullmatch(key) else None

    def _read(self, key: str) -> list[Record] | None:
        folder = self._folder(key)
        if folder is None or not folder.is_dir():
            return None
        try:
            return self._load(key)
        except CorruptArtifactError as error:
            self._move_aside(key, error)
            return None

    def _load(self, key: str) -> list[Record]:
        """Return the records of a journal that is there. Raises `CorruptArtifactError`."""
        try:
            content = (self._root / key / JOURNAL_FILE).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise CorruptArtifactError(f"the {self._what} of {key} has no {JOURNAL_FILE}") from error
        lines = content.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            _log.warning("the %s of %s ended in half a record, which is cut off", self._what, key)
            del lines[-1]
        if not lines:
            raise CorruptArtifactError(f"the {self._what} of {key} is empty")
        records = []
        for number, line in enumerate(lines, 1):
            record = decoded(line)
            if record is None:
                raise CorruptArtifactError(f"the {self._what} of {key} is damaged: record {number}")
            records.append(record)
        self._lengths[key] = sum(map(len, lines))
        begun = self._marks[key].begun if key in self._marks else uuid.uuid4().hex
        self._marks[key] = Mark(begun, len(records))
        return records

    def _move_aside(self, key: str, error: CorruptArtifactError) -> None:
        _log.error("%s is moved aside: %s", key, error)
        self._forget(key)
        damaged = self._root / DAMAGED
        damaged.mkdir(exist_ok=True)
        (self._root / key).rename(damaged / f"{key}-{uuid.uuid4().hex[:8]}")
