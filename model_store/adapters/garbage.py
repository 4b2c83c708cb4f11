"""What lies in a store and belongs to nothing: found, and removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from model_store.adapters.contract import Adapters, CalibrationJournals
from model_store.adapters.gate_journals import FOLDER as CALIBRATIONS
from model_store.adapters.names import FOLDER as NAMES
from model_store.adapters.opening import Stores
from model_store.adapters.shared_journals import DAMAGED as SHARED_DAMAGED
from model_store.adapters.shared_journals import SharedJournals
from model_store.adapters.shared_store import DIAGNOSES, RECORDS, TENSORS, USES, SharedAdapterStore
from model_store.errors import CorruptArtifactError, UnsupportedFormatError
from model_store.objects.contract import Listed, Objects
from model_store.storage import DAMAGED, folder_bytes


@dataclass(frozen=True)
class Garbage:
    """A thing that may go: `what` it is, where, its bytes, and when it was last changed (UTC).

    `remove` looks once more whether it may, since servers may go on.
    """

    what: str
    place: str
    size_bytes: int
    modified: datetime
    remove: Callable[[], object] = field(compare=False, repr=False)


def find_garbage(stores: Stores, data_dir: Path, min_age: timedelta) -> list[Garbage]:
    """Return what no adapter, name or calibration needs, and has not changed for `min_age`.

    That age is what protects a write that is under way: tensors come before the record that names
    them. Nothing is removed here. Raises `StoreUnavailableError`.
    """
    oldest = datetime.now(UTC) - min_age
    found = _of_objects(stores, stores.objects) if stores.objects else _of_folders(stores, data_dir)
    return [garbage for garbage in found if garbage.modified <= oldest]


def _of_folders(stores: Stores, data_dir: Path) -> Iterator[Garbage]:
    for kind in (RECORDS, NAMES, CALIBRATIONS):
        for folder in sorted((data_dir / kind / DAMAGED).glob("*")):
            yield _folder("damaged entry", folder, lambda folder=folder: shutil.rmtree(folder))  # type: ignore[misc]
    for key in _orphans(stores.adapters, stores.calibrations):
        folder = data_dir / CALIBRATIONS / key
        yield _folder(
            "calibration without adapter",
            folder,
            lambda key=key: stores.calibrations.delete(key),  # type: ignore[misc]
        )


def _folder(what: str, folder: Path, remove: Callable[[], object]) -> Garbage:
    changed = max(path.stat().st_mtime for path in (folder, *folder.glob("*")))
    return Garbage(what, str(folder), folder_bytes(folder), datetime.fromtimestamp(changed, UTC), remove)


def _orphans(adapters: Adapters, calibrations: CalibrationJournals) -> Iterator[str]:
    """Yield the keys of calibrations whose adapter is not there."""
    keys = calibrations.keys()
    for key in keys:
        if not adapters.has(key.partition(".")[0]):
            yield key


def _of_objects(stores: Stores, objects: Objects) -> Iterator[Garbage]:
    adapters = stores.adapters
    assert isinstance(adapters, SharedAdapterStore)

    def garbage(
        what: str,
        listed: Listed,
        id: str | None = None,
        remove: Callable[[], object] | None = None,
    ) -> Garbage:
        """Return what belongs to the adapter `id`, if to any, which was not there."""

        def unless_needed() -> None:
            changed = objects.tag(listed.key) != listed.tag
            if not changed and (id is None or not adapters.has(id)):
                remove() if remove else objects.delete(listed.key)

        return Garbage(
            what, f"{objects.name}/{listed.key}", listed.size_bytes, listed.modified, unless_needed
        )

    for listed in objects.list(f"{SHARED_DAMAGED}/"):
        yield garbage("damaged entry", listed)
    for listed in objects.list(f"{TENSORS}/"):
        if not _is_needed(adapters, listed.key):
            yield garbage("tensors without adapter", listed)
    for folder, what in ((DIAGNOSES, "diagnosis without adapter"), (USES, "use without adapter")):
        for listed in objects.list(f"{folder}/"):
            id = listed.key.removeprefix(f"{folder}/").removesuffix(".json")
            if not adapters.has(id):
                yield garbage(what, listed, id)
    for folder, journals in ((NAMES, stores.names.journals), (CALIBRATIONS, stores.calibrations)):
        assert isinstance(journals, SharedJournals)
        for listed in objects.list(f"{folder}-parts/"):
            if not journals.names_part(listed.key):
                yield garbage("records without journal", listed)
    orphans = set(_orphans(adapters, stores.calibrations))
    for listed in objects.list(f"{CALIBRATIONS}/"):
        key = listed.key.removeprefix(f"{CALIBRATIONS}/").removesuffix(".jsonl")
        if key in orphans:
            yield garbage(
                "calibration without adapter",
                listed,
                key.partition(".")[0],
                lambda key=key: stores.calibrations.delete(key),  # type: ignore[misc]
            )


def _is_needed(adapters: SharedAdapterStore, tensors: str) -> bool:
    """Return whether the adapter's record names these tensors, or cannot be read."""
    try:
        record = adapters.record(tensors.split("/")[1])
    except (CorruptArtifactError, UnsupportedFormatError):
        return True
    return record is not None and record.tensors == tensors
