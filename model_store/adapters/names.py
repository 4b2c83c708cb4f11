"""Names of adapters on disk: a journal for each name, with every version that it has had.

    <root>/<name>/journal.jsonl    the first record has the format and the name, each further one a
                                   version, or that the name was deleted

A version never changes, and its number never comes again, also after the name was deleted: whoever
wrote down `tickets@3` finds the same adapter or none.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Self

from model_store.adapters.findings import Finding
from model_store.adapters.journals import Journals, Record
from model_store.adapters.manifest import ADAPTER_ID
from model_store.errors import CorruptArtifactError, UnsupportedFormatError

FORMAT_VERSION = 1
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
    """Owns the names below `root`, in memory and on disk; threads may share it.

    `root` belongs to the process that owns the adapter store beside it. A change is on disk when
    its method returns. Damaged names are moved aside, as if they had never been there.
    """

    def __init__(self, root: Path) -> None:
        """Read every name. Raises `UnusableFolderError`."""
        self._mutex = threading.Lock()
        self._histories: dict[str, NameHistory] = {}
        self._journals = Journals(root, NAME, "name")
        self.intact, self.findings = self._journals.verify(self._read)
        self._foreign = {finding.id: finding for finding in self.findings if not finding.moved}

    intact: int
    """Number of names that could be read, deleted ones included."""
    findings: Sequence[Finding]
    """What is wrong with the others."""

    def __len__(self) -> int:
        """Return the number of names, deleted ones included: their numbers are kept."""
        return len(self._histories)

    def __contains__(self, name: str) -> bool:
        return name in self._histories

    def get(self, name: str) -> NameHistory | None:
        """Return the history of a name that is not deleted. `name` may be any text."""
        history = self._histories.get(name)
        return history if history and history.versions else None

    def page(self, after: str | None, limit: int) -> list[NameHistory]:
        """Return at most `limit` names in their order, those behind `after` only."""
        with self._mutex:
            names = sorted(name for name in self._histories if after is None or name > after)
        found = (history for name in names if (history := self.get(name)) is not None)
        return list(islice(found, limit))

    def named(self, adapter_id: str) -> list[str]:
        """Return the names whose current version points to this adapter, in their order."""
        with self._mutex:
            current = [(name, history.current) for name, history in self._histories.items()]
        return sorted(name for name, version in current if version and version.adapter_id == adapter_id)

    def put(
        self, name: str, adapter_id: str, *, note: str | None = None, rollback_of: int | None = None
    ) -> NameHistory:
        """Point the name to an adapter by a new version, and return its history.

        Raises `StorageFullError` and `UnsupportedFormatError`, with nothing changed, and
        `ValueError` for a text that is no name or no adapter id.
        """
        with self._mutex:
            old = self._histories.get(name) or NameHistory(name)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            new = Version(old.last + 1, adapter_id, created, note, rollback_of)
            self._write(name, {"version": asdict(new)})
            history = replace(old, versions=(*old.versions, new), last=new.number)
            self._histories[name] = history
            return history

    def delete(self, name: str) -> bool:
        """Delete the name, and return whether there was one. Raises `StorageFullError`."""
        with self._mutex:
            history = self.get(name)
            if history is None:
                return False
            self._write(name, {"deleted": datetime.now(UTC).isoformat(timespec="seconds")})
            self._histories[name] = replace(history, versions=())
            return True

    def _read(self, name: str, records: Sequence[Record]) -> None:
        self._histories[name] = NameHistory.of(name, records)

    def _write(self, name: str, record: Record) -> None:
        if name in self._histories:
            self._journals.append(name, record)
        elif name in self._foreign:
            raise UnsupportedFormatError(f"{name}: {self._foreign[name].reason}")
        else:
            self._journals.begin(name, [{"format_version": FORMAT_VERSION, "name": name}, record])
