"""What the service knows of stores: the same of one in a folder of its own and of a shared one.

`tests/model_store/adapters/test_shared.py` runs on every kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from abmll.assurance.diagnostics import Diagnosis
    from model_store.adapters.findings import Finding
    from model_store.adapters.manifest import AdapterManifest
    from model_store.adapters.store import StoredAdapter
    from model_store.errors import CorruptArtifactError

Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Mark:
    """How far a journal was read: `begun` names its beginning, and `records` counts from there.

    Journals only grow behind their beginning. So two readers with one mark have the same records.
    """

    begun: str = ""
    records: int = 0


ABSENT = Mark()
"""The mark of a journal that is not there."""


@dataclass(frozen=True)
class Loaded:
    """Records of a journal, and the mark behind them.

    They are all its records where `anew`, else those behind the mark that the reader had.
    """

    records: Sequence[Record]
    mark: Mark
    anew: bool


class RecordJournals(Protocol):
    """Durable journals by key. Threads may share them; see `Journals`.

    A write with `expected` happens only where the journal is at that mark, and raises
    `JournalChangedError` otherwise. All methods raise `StoreUnavailableError` where a shared store
    does not answer; a write may have happened then, or not.
    """

    def begin(self, key: str, records: Sequence[Record], expected: Mark | None = None) -> Mark:
        """Write a journal of `records`, in place of the one that is there."""
        ...

    def append(self, key: str, record: Record, expected: Mark | None = None) -> Mark:
        """Add `record` durably. Raises `LookupError` where there is no journal."""
        ...

    def read(self, key: str) -> list[Record] | None:
        """Return all records in their order; None where there is no intact journal."""
        ...

    def load(self, key: str, since: Mark = ABSENT) -> Loaded | None:
        """Return the records behind `since`, or all where the journal was begun anew."""
        ...

    def verify(self, check: Callable[[str, Sequence[Record]], object]) -> tuple[int, Sequence[Finding]]:
        """Read every journal whole; return how many are intact, and what is wrong with the others."""
        ...

    def keys(self) -> list[str]:
        """Return the keys of all journals, in their order."""
        ...

    def tags(self) -> Mapping[str, str]:
        """Return for each key a text that changes whenever its journal does."""
        ...

    def move_aside(self, key: str, error: CorruptArtifactError) -> None:
        """Move a journal aside whose records mean nothing, as `error` says."""
        ...

    def delete(self, key: str) -> bool:
        """Remove the journal durably, and return whether there was one."""
        ...


class CalibrationJournals(RecordJournals, Protocol):
    """Journals of calibrations: an adapter has one for each of its questions."""

    def of_adapter(self, adapter_id: str) -> list[str]:
        """Return the keys of an adapter's journals. `adapter_id` may be any text."""
        ...

    def delete_of(self, adapter_id: str) -> bool:
        """Remove an adapter's journals durably, and return whether there were any."""
        ...


class Adapters(Protocol):
    """A durable store of adapters. Threads may share it; see `AdapterStore`.

    All methods but `is_current` and `close` raise `StoreUnavailableError` where a shared store does
    not answer.
    """

    def close(self) -> None:
        """Let another process own what only one may have."""
        ...

    @property
    def total_bytes(self) -> int:
        """Return the bytes of adapters on this machine's disk."""
        ...

    def touch(self, id: str) -> None:
        """Write down that the adapter, if it is there, is used now."""
        ...

    def last_used_before(self, moment: float) -> Sequence[str]:
        """Return the ids of adapters that were made and last used before this time of the epoch, in
        s.
        """
        ...

    def usage(self) -> tuple[int, int]:
        """Return how many adapters there are, and their bytes."""
        ...

    def is_current(self, id: str) -> bool:
        """Return whether this process may use the adapter in its memory without a look at the
        store.

        It has no wait.
        """
        ...

    def put(self, adapter: StoredAdapter) -> None:
        """Store `adapter` durably. One that is already there stays: an id names one content."""
        ...

    def put_diagnosis(self, id: str, diagnosis: Diagnosis) -> bool:
        """Keep the diagnosis of an adapter, and return whether there is such an adapter."""
        ...

    def get(self, id: str) -> StoredAdapter | None:
        """Return the adapter, or None where there is no intact one. `id` may be any text."""
        ...

    def manifest(self, id: str) -> AdapterManifest | None:
        """Return the adapter's manifest, or None where there is no intact one."""
        ...

    def has(self, id: str) -> bool:
        """Return whether there is an adapter `id`, intact or not."""
        ...

    def list(self, after: str | None, limit: int) -> list[AdapterManifest]:
        """Return the manifests of at most `limit` adapters behind `after`, in the order of their
        ids.
        """
        ...

    def verify(self) -> tuple[int, Sequence[Finding]]:
        """Read every adapter whole; return how many are intact, and what is wrong with the others."""
        ...

    def delete(self, id: str) -> bool:
        """Remove the adapter durably, and return whether there was one."""
        ...
