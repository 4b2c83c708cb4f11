"""Durable journals among objects, which several processes append to; `Journals` is the other kind.

    <folder>/<key>.jsonl              the tip: a line about the journal, then its newest records
    <folder>-parts/<key>/<id>.jsonl   older records, which never change
    damaged/<folder>/<key>-<id>.jsonl tips that could not be read

Every change replaces the tip, where nobody else has replaced it since it was read: so the tip
orders all changes, and none is lost. A tip that has grown long begins anew, with its records in a
part. A part counts where the tip names it.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from model_store.adapters.contract import ABSENT, Loaded, Mark, Record
from model_store.adapters.findings import Finding, verify_each
from model_store.adapters.journal_lines import decoded, encoded
from model_store.errors import (
    CorruptArtifactError,
    JournalChangedError,
    StoreError,
    StoreUnavailableError,
    UnsupportedFormatError,
)
from model_store.objects.contract import Objects

FORMAT_VERSION = 1
LONGEST_TIP_BYTES = 1 << 18  # what each append writes at most, with its own record
DAMAGED = "damaged"
_MOST_TRIES = 100
_WRITES_IN_A_ROW = 8
_PAUSE = 4.0  # in times of a write
_MOST_TIPS = 256
_SUFFIX = ".jsonl"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Tip:
    """A journal as its tip told: `parts` are ids with their numbers of records.

    `lines` are those of the tip behind its first; `records` are all of the journal.
    """

    tag: str
    begun: str
    parts: tuple[tuple[str, int], ...]
    lines: tuple[bytes, ...]
    records: Sequence[Record]

    @property
    def mark(self) -> Mark:
        return Mark(self.begun, len(self.records))

    def content(self) -> bytes:
        """Return the bytes of a tip; no two calls give the same."""
        first = {
            "format_version": FORMAT_VERSION,
            "begun": self.begun,
            "parts": self.parts,
            "write": uuid.uuid4().hex,
        }
        return encoded(first) + b"".join(self.lines)


class _DamagedTipError(CorruptArtifactError):
    """The journal could not be read when its tip had `tag`."""

    def __init__(self, error: CorruptArtifactError, tag: str) -> None:
        super().__init__(str(error))
        self.tag = tag


class _PartGoneError(Exception):
    """A part is not there, so the tip that named it is no longer that of the journal."""


class SharedJournals:
    """Owns nothing: journals below `folder` of `objects`, as `RecordJournals`, for many processes.

    `keys` and `what` are as in `Journals`.
    """

    def __init__(self, objects: Objects, folder: str, keys: re.Pattern[str], what: str) -> None:
        """Use the folder of `objects`; nothing is read yet."""
        self._objects, self._folder, self._keys, self._what = objects, folder, keys, what
        self._mutex = threading.Lock()
        self._tips: OrderedDict[str, _Tip] = OrderedDict()  # as they were last seen
        self._in_a_row: dict[str, int] = {}  # writes of this process on top of its own, by key

    def begin(self, key: str, records: Sequence[Record], expected: Mark | None = None) -> Mark:
        """Write a journal of `records`, in place of the one that is there.

        Raises `NonFiniteError` with the old journal kept, `ValueError` for a text that is no key,
        and as `RecordJournals`.
        """
        if not self._keys.fullmatch(key):
            raise ValueError(f"not a key of a {self._what}: {key!r}")
        new = _Tip("", uuid.uuid4().hex, (), tuple(map(encoded, records)), list(records))
        for old in self._tries(key, expected):
            content = new.content()
            path = self._path(key)
            tag = (
                self._objects.create(path, content)
                if old is None
                else self._objects.replace(path, content, old.tag)
            )
            if tag is not None:
                if old is not None:
                    self._delete_parts(key, old)
                return self._seen(key, _Tip(tag, new.begun, (), new.lines, new.records))
        raise self._busy(key)

    def append(self, key: str, record: Record, expected: Mark | None = None) -> Mark:
        """Add `record` durably. Raises `LookupError` where there is no journal, and as `begin`."""
        line = encoded(record)
        for old in self._tries(key, expected):
            if old is None:
                raise LookupError(f"{key!r} has no {self._what}")
            parts, lines = old.parts, old.lines
            if lines and sum(map(len, lines)) + len(line) > LONGEST_TIP_BYTES:
                part = uuid.uuid4().hex
                self._objects.put(self._part(key, part), b"".join(lines))
                parts, lines = (*parts, (part, len(lines))), ()
            new = _Tip("", old.begun, parts, (*lines, line), [*old.records, record])
            begun = time.monotonic()
            tag = self._objects.replace(self._path(key), new.content(), old.tag)
            if tag is not None:
                mark = self._seen(key, _Tip(tag, new.begun, new.parts, new.lines, new.records))
                self._let_others(key, time.monotonic() - begun)
                return mark
            if parts != old.parts:
                with suppress(StoreError):
                    self._objects.delete(self._part(key, parts[-1][0]))
        raise self._busy(key)

    def read(self, key: str) -> list[Record] | None:
        """Return all records in their order; None where there is no intact journal."""
        loaded = self.load(key)
        return None if loaded is None else list(loaded.records)

    def load(self, key: str, since: Mark = ABSENT) -> Loaded | None:
        """Return the records behind `since`, or all where the journal was begun anew.

        Return None where there is no intact journal. `key` may be any text. Raises
        `UnsupportedFormatError`.
        """
        tip = self._tip(key)
        if tip is None:
            return None
        anew = since.begun != tip.begun
        return Loaded(tip.records if anew else tip.records[since.records :], tip.mark, anew)

    def verify(self, check: Callable[[str, Sequence[Record]], object]) -> tuple[int, Sequence[Finding]]:
        """Read every journal whole; return how many are intact, and what is wrong with the others.

        `check` is as in `Journals.verify`. Damaged journals are moved aside.
        """

        def read(key: str) -> None:
            tip = self._fetch(key, None)
            if tip is not None:  # else it was deleted meanwhile
                try:
                    check(key, tip.records)
                except CorruptArtifactError as error:
                    raise _DamagedTipError(error, tip.tag) from error

        return verify_each(self.keys(), read, self.move_aside)

    def keys(self) -> list[str]:
        """Return the keys of all journals, in their order."""
        return sorted(self.tags())

    def tags(self) -> Mapping[str, str]:
        """Return for each key a text that changes whenever its journal does."""
        found = {}
        for listed in self._objects.list(f"{self._folder}/"):
            key = listed.key.removeprefix(f"{self._folder}/").removesuffix(_SUFFIX)
            if self._keys.fullmatch(key):
                found[key] = listed.tag
        return found

    def names_part(self, path: str) -> bool:
        """Return whether the tip of its journal names the part with this key, or cannot be read."""
        key = path.split("/")[1]
        try:
            tip = self._fetch(key, self._last_seen(key))
        except (CorruptArtifactError, UnsupportedFormatError):
            return True
        return tip is not None and path in {self._part(key, part) for part, _ in tip.parts}

    def move_aside(self, key: str, error: CorruptArtifactError) -> None:
        """Move a journal aside whose records mean nothing, as `error` says. Its parts stay.

        One that another process has begun or changed since it was read stays.
        """
        found = self._objects.get(self._path(key))
        known = self._last_seen(key)
        seen = error.tag if isinstance(error, _DamagedTipError) else known.tag if known else None
        if found is not None and found.tag == seen:
            _log.error("%s is moved aside: %s", key, error)
            aside = f"{DAMAGED}/{self._folder}/{key}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
            self._objects.put(aside, found.data)
            if self._objects.tag(self._path(key)) == seen:
                self._objects.delete(self._path(key))
        self._forget(key)

    def delete(self, key: str) -> bool:
        """Remove the journal durably, and return whether there was one."""
        if not self._keys.fullmatch(key):
            return False
        tip = None
        with suppress(CorruptArtifactError, UnsupportedFormatError):
            tip = self._fetch(key, None)
        deleted = self._objects.delete(self._path(key))
        self._forget(key)
        if tip is not None:
            self._delete_parts(key, tip)
        return deleted

    # ---- the tip ----

    def _tries(self, key: str, expected: Mark | None) -> Iterator[_Tip | None]:
        """Yield the journal to change, as last seen and then as it is, while others are faster.

        Raises `JournalChangedError` where it is not at the mark `expected`.
        """
        known = self._last_seen(key)
        if known is not None and expected in {None, known.mark}:
            yield known
            self._in_a_row.pop(key, None)
        for number in range(_MOST_TRIES):
            tip = self._tip(key, look_first=number == 0 and known is None)
            if expected is not None and expected != (tip.mark if tip else ABSENT):
                raise JournalChangedError(f"the {self._what} of {key} has changed")
            yield tip
            time.sleep(random.uniform(0, 0.01 * min(number + 1, 10)))  # noqa: S311 - no secret

    def _last_seen(self, key: str) -> _Tip | None:
        with self._mutex:
            return self._tips.get(key)

    def _seen(self, key: str, tip: _Tip) -> Mark:
        with self._mutex:
            self._tips[key] = tip
            self._tips.move_to_end(key)
            if len(self._tips) > _MOST_TIPS:
                self._in_a_row.pop(self._tips.popitem(last=False)[0], None)
        return tip.mark

    def _forget(self, key: str) -> None:
        with self._mutex:
            self._tips.pop(key, None)
            self._in_a_row.pop(key, None)

    def _let_others(self, key: str, write_seconds: float) -> None:
        """Pause after some writes in a row, in which another process can read and write.

        A process that only writes needs one request for it, and one that has lost needs two:
        without a pause the second would lose for ever.
        """
        writes = self._in_a_row.get(key, 0) + 1
        self._in_a_row[key] = 0 if writes >= _WRITES_IN_A_ROW else writes
        if writes >= _WRITES_IN_A_ROW:
            time.sleep(_PAUSE * write_seconds)

    def _tip(self, key: str, *, look_first: bool = True) -> _Tip | None:
        """Return the journal as it is now; None where there is no intact one.

        `look_first` asks for its tag before its content, which saves that where nothing has
        changed.
        """
        if not self._keys.fullmatch(key):
            return None
        known = self._last_seen(key)
        if look_first and known is not None and self._objects.tag(self._path(key)) == known.tag:
            return known
        tip = None
        for _ in range(2):  # the second time for one that another process has begun meanwhile
            try:
                tip = self._fetch(key, known)
                break
            except CorruptArtifactError as error:
                self.move_aside(key, error)
        if tip is None:
            self._forget(key)
        else:
            self._seen(key, tip)
        return tip

    def _fetch(self, key: str, known: _Tip | None) -> _Tip | None:
        """Read the journal, but for what is known. Raises `_DamagedTipError`."""
        tag = None
        while True:
            found = self._objects.get(self._path(key))
            if found is None:
                return None
            try:
                return self._parsed(key, found.data, found.tag, known)
            except CorruptArtifactError as error:
                raise _DamagedTipError(error, found.tag) from error
            except _PartGoneError as error:
                if found.tag == tag:
                    lacking = CorruptArtifactError(f"the {self._what} of {key} lacks a part")
                    raise _DamagedTipError(lacking, tag) from error
                tag = found.tag  # once more: it was begun anew between the two reads

    def _parsed(self, key: str, data: bytes, tag: str, known: _Tip | None) -> _Tip:
        first, *lines = data.splitlines(keepends=True) or [b""]
        about = decoded(first)
        if about is None:
            raise CorruptArtifactError(f"the {self._what} of {key} is damaged: its first line")
        if about.get("format_version") != FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"the {self._what} of {key} is in journal format {about.get('format_version')!r}; "
                f"the one read here is {FORMAT_VERSION}"
            )
        parts = tuple((str(part), int(count)) for part, count in about["parts"])
        old = known.records if known is not None and known.begun == about["begun"] else ()
        records: list[Record] = []
        for part, count in parts:
            end = len(records) + count
            records += old[len(records) : end] if end <= len(old) else self._read_part(key, part, count)
        records += self._records(key, lines)
        return _Tip(tag, about["begun"], parts, tuple(lines), records)

    def _read_part(self, key: str, part: str, count: int) -> list[Record]:
        found = self._objects.get(self._part(key, part))
        if found is None:
            raise _PartGoneError
        records = self._records(key, found.data.splitlines(keepends=True))
        if len(records) != count:
            raise CorruptArtifactError(f"the {self._what} of {key} is damaged: part {part}")
        return records

    def _records(self, key: str, lines: Sequence[bytes]) -> list[Record]:
        records = []
        for line in lines:
            record = decoded(line)
            if record is None:
                raise CorruptArtifactError(f"the {self._what} of {key} is damaged")
            records.append(record)
        return records

    def _delete_parts(self, key: str, tip: _Tip) -> None:
        """Delete parts that no tip names any more; `abmll store gc` finds those that are left."""
        with suppress(StoreError):
            for part, _ in tip.parts:
                self._objects.delete(self._part(key, part))

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key}{_SUFFIX}"

    def _part(self, key: str, part: str) -> str:
        return f"{self._folder}-parts/{key}/{part}{_SUFFIX}"

    def _busy(self, key: str) -> StoreUnavailableError:
        return StoreUnavailableError(f"other servers change the {self._what} of {key} all the time")
