"""Names of adapters on disk: a journal for each name, with every version that it has had.

    <root>/<name>/journal.jsonl    the first record has the format and the name, each further one a
                                   version, or that the name was deleted

A version never changes, and its number never comes again, also after the name was deleted: whoever
wrote down `tickets@3` finds the same adapter or none.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Self

from model_store.adapters.contract import ABSENT, Mark, Record, RecordJournals
from model_store.adapters.findings import Finding
from model_store.adapters.journals import Journals
from model_store.adapters.manifest import ADAPTER_ID
from model_store.errors import CorruptArtifactError, JournalChangedError, UnsupportedFormatError

FORMAT_VERSION = 1
FOLDER = "names"
_READERS = 8  # reads of a shared store at a time
NAME = re.compile(r"(?!adp_)[a-z][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Version:
    """One version of a name: the adapter that it pointed to from `created` (UTC, ISO 8601) on.

    `number` counts from 1. `rollback_of` is the number of the version that was gone back to.
    """

    number: int
    adapter_id: str
    created: str
    note: str | None = None
    rollback_of: int | None = None

    def __post_init__(self) -> None:
        if not ADAPTER_ID.fullmatch(self.adapter_id):
            raise ValueError(f"not an adapter id: {self.adapter_id!r}")


@dataclass(frozen=True)
class NameHistory:
    """A name with its versions, oldest first; the last one is the current one.

    `last` is the highest number that was given. A deleted name has no versions.
    """

    name: str
    versions: tuple[Version, ...] = ()
    last: int = 0

    @property
    def current(self) -> Version | None:
        """Return the current version; None where the name is deleted."""
        return self.versions[-1] if self.versions else None

    def version(self, number: int) -> Version | None:
        """Return the version of this number, if there is one."""
        first = self.last - len(self.versions) + 1
        return self.versions[number - first] if first <= number <= self.last else None

    @classmethod
    def of(cls, name: str, records: Sequence[Record]) -> Self:
        """Return the history that the records of a journal tell.

        Raises `CorruptArtifactError` and `UnsupportedFormatError`.
        """
        try:
            first, *changes = records
            if first["format_version"] != FORMAT_VERSION:
                raise UnsupportedFormatError(
                    f"name format {first['format_version']!r} is not the one read here, {FORMAT_VERSION}"
                )
            if first["name"] != name:
                raise CorruptArtifactError(f"{name} has the versions of another name, {first['name']!r}")
            versions, last = list[Version](), 0
            for record in changes:
                if "deleted" in record:
                    versions.clear()
                    continue
                version, last = Version(**record["version"]), last + 1
                if version.number != last:
                    raise ValueError(f"version {version.number!r} stands where {last} was due")
                versions.append(version)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(f"the versions of {name} cannot be read: {error!r}") from error
        return cls(name, tuple(versions), last)


class NameStore:
    """Owns the names of a folder, or knows those of a shared store; threads may share it.

    A change is durable when its method returns. Damaged names are moved aside, as if they had
    never been there. `get`, `page` and `named` answer from memory. What others have changed since
    is not there before `refresh` or `refresh_all`; what this one writes needs neither, since a
    write on top of a change that was not seen is made again.
    """

    def __init__(self, journals: Path | RecordJournals, fresh_seconds: float = math.inf) -> None:
        """Know the names of `journals`, or of those below a folder that is this process's own.

        `fresh_seconds` is how long what was read of a name counts as what it is. The names of a
        folder are read now; it belongs to the process that owns the adapter store beside it.
        Raises `UnusableFolderError`.
        """
        self._mutex = threading.RLock()
        self._known: dict[str, _Known] = {}
        self._foreign: dict[str, str] = {}  # names in the format of another version, with the reason
        self._fresh_seconds, self._all_read_at = fresh_seconds, -math.inf
        self._own = isinstance(journals, Path)
        self.journals = Journals(journals, NAME, "name") if isinstance(journals, Path) else journals
        self.intact, self.findings = self.verify() if self._own else (0, ())

    journals: RecordJournals
    """Where the names are, one journal each."""
    intact: int
    """Number of names that could be read at the start, deleted ones included; 0 if none was."""
    findings: Sequence[Finding]
    """What was wrong with the others."""

    def verify(self) -> tuple[int, Sequence[Finding]]:
        """Read every name whole; return how many are intact, and what is wrong with the others."""
        intact, findings = self.journals.verify(self._keep if self._own else NameHistory.of)
        self._foreign = {finding.id: finding.reason for finding in findings if not finding.moved}
        self._all_read_at = time.monotonic() if self._own else self._all_read_at
        return intact, findings

    def __len__(self) -> int:
        """Return the number of names, deleted ones included: their numbers are kept."""
        return len(self._known)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def is_current(self, name: str) -> bool:
        """Return whether `get` may answer without `refresh`. It has no wait."""
        known = self._known.get(name)
        looked_at = known.looked_at if known else self._all_read_at
        return time.monotonic() - looked_at < self._fresh_seconds or not NAME.fullmatch(name)

    def refresh(self, name: str) -> None:
        """See what others have made of the name, unless it was looked at a moment ago."""
        if not self.is_current(name):
            self._look(name)

    def refresh_all(self) -> None:
        """See what others have made of all names, unless it was done a moment ago."""
        if time.monotonic() - self._all_read_at < self._fresh_seconds:
            return
        begun, tags = time.monotonic(), self.journals.tags()
        changed = [
            name for name, tag in tags.items() if name not in self._known or self._known[name].tag != tag
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            for _ in pool.map(lambda name: self._look(name, tags[name]), changed):
                pass
        with self._mutex:
            for name in set(self._known) - set(tags):
                if self._known[name].looked_at < begun:
                    del self._known[name]
        self._all_read_at = begun

    def get(self, name: str) -> NameHistory | None:
        """Return the history of a name that is not deleted. `name` may be any text."""
        known = self._known.get(name)
        return known.history if known and known.history.versions else None

    def page(self, after: str | None, limit: int) -> list[NameHistory]:
        """Return at most `limit` names in their order, those behind `after` only."""
        with self._mutex:
            names = sorted(name for name in self._known if after is None or name > after)
        found = (history for name in names if (history := self.get(name)) is not None)
        return list(islice(found, limit))

    def named(self, adapter_id: str) -> list[str]:
        """Return the names whose current version points to this adapter, in their order."""
        with self._mutex:
            current = [(name, known.history.current) for name, known in self._known.items()]
        return sorted(name for name, version in current if version and version.adapter_id == adapter_id)

    def put(
        self,
        name: str,
        adapter_id: str,
        *,
        note: str | None = None,
        rollback_of: int | None = None,
        if_version: int | None = None,
    ) -> NameHistory:
        """Point the name to an adapter by a new version, and return its history.

        With `if_version`, only where that is the number of the last version; raises
        `JournalChangedError` where another is. Raises `StorageFullError` and
        `UnsupportedFormatError`, with nothing changed, and `ValueError` for a text that is no name
        or no adapter id.
        """

        def change(old: NameHistory) -> tuple[NameHistory, Record]:
            if if_version is not None and if_version != (old.last if old.versions else 0):
                raise JournalChangedError(f"the name {name} is at {old.last}, not at {if_version}")
            created = datetime.now(UTC).isoformat(timespec="seconds")
            new = Version(old.last + 1, adapter_id, created, note, rollback_of)
            history = replace(old, versions=(*old.versions, new), last=new.number)
            return history, {"version": asdict(new)}

        return self._change(name, change)

    def delete(self, name: str) -> bool:
        """Delete the name, and return whether there was one. Raises `StorageFullError`."""

        if not NAME.fullmatch(name):
            return False

        def change(old: NameHistory) -> tuple[NameHistory, Record]:
            if not old.versions:
                raise LookupError(name)
            deleted = datetime.now(UTC).isoformat(timespec="seconds")
            return replace(old, versions=()), {"deleted": deleted}

        try:
            self._change(name, change)
        except LookupError:
            return False
        return True

    def _change(self, name: str, change: Callable[[NameHistory], tuple[NameHistory, Record]]) -> NameHistory:
        """Write what `change` makes of the name's history, also where others change it meanwhile."""
        with self._mutex:
            while True:
                if name in self._foreign:
                    raise UnsupportedFormatError(f"{name}: {self._foreign[name]}")
                known = self._known.get(name) or _Known(NameHistory(name), ABSENT, -math.inf, None)
                try:
                    history, record = change(known.history)
                    if known.mark == ABSENT:
                        first = {"format_version": FORMAT_VERSION, "name": name}
                        mark = self.journals.begin(name, [first, record], ABSENT)
                    else:
                        mark = self.journals.append(name, record, known.mark)
                except (JournalChangedError, LookupError):
                    self._look(name)
                    now = self._known.get(name)
                    if name not in self._foreign and (now.mark if now else ABSENT) == known.mark:
                        raise  # it is as it was known to be: `change` does not want it
                    continue
                self._known[name] = _Known(history, mark, time.monotonic(), None)
                return history

    def _keep(self, name: str, records: Sequence[Record]) -> None:
        """Know a name of this process's own folder, whose journal nobody else changes."""
        self._known[name] = _Known(NameHistory.of(name, records), None, time.monotonic(), None)

    def _look(self, name: str, tag: str | None = None) -> None:
        """Read what the name is now. `tag` is its journal's, as it was listed just before."""
        begun = time.monotonic()
        try:
            loaded = self.journals.load(name)
            history = NameHistory.of(name, loaded.records) if loaded else None
        except CorruptArtifactError as error:
            self.journals.move_aside(name, error)
            loaded = history = None
        except UnsupportedFormatError as error:
            self._foreign[name] = str(error)
            return
        with self._mutex:
            self._foreign.pop(name, None)
            known = self._known.get(name)
            if known is not None and known.looked_at > begun:
                return  # this process has written it meanwhile
            if loaded is None or history is None:
                self._known.pop(name, None)
            else:
                self._known[name] = _Known(history, loaded.mark, begun, tag)


@dataclass(frozen=True)
class _Known:
    """A name as it was read or written at `looked_at`, in the monotonic clock's time.

    `mark` is None where nobody else changes its journal.
    """

    history: NameHistory
    mark: Mark | None
    looked_at: float
    tag: str | None
