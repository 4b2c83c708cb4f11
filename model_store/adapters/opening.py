"""Opens what a server or a command stores: adapters, their names, and calibrations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from model_store.adapters.contract import Adapters, CalibrationJournals
from model_store.adapters.folder_cache import FolderCache
from model_store.adapters.gate_journals import FOLDER as CALIBRATIONS
from model_store.adapters.gate_journals import GateJournals, SharedGateJournals
from model_store.adapters.names import FOLDER as NAMES
from model_store.adapters.names import NAME, NameStore
from model_store.adapters.shared_journals import SharedJournals
from model_store.adapters.shared_store import RECORDS, SharedAdapterStore
from model_store.adapters.store import AdapterStore
from model_store.objects.contract import Objects
from model_store.objects.opening import open_objects

CACHE = "adapters-of-store"


@dataclass(frozen=True)
class Stores:
    """The three stores of one place.

    `fresh_seconds` is how long what was read counts as what it is; without end where no other
    process writes. `objects` is where they lie, if others share it.
    """

    adapters: Adapters
    names: NameStore
    calibrations: CalibrationJournals
    fresh_seconds: float = math.inf
    objects: Objects | None = None


def open_stores(
    data_dir: Path,
    url: str | None = None,
    *,
    cache_bytes: int = 1 << 34,
    fresh_seconds: float = 1.0,
    timeout_seconds: float = 10.0,
) -> Stores:
    """Open the stores below `data_dir`, or those at `url` with a cache below `data_dir`.

    Close `adapters` at the end: it holds the lock of `data_dir`. Raises `StoreInUseError` while
    another process has that, `ValueError` as `open_objects`, `UnusableFolderError`,
    `StoreUnavailableError`, and `UnsupportedFormatError` for a store of another version.
    """
    if url is None:
        adapters = AdapterStore(data_dir / RECORDS)  # first: it holds the lock of the data folder
        return Stores(adapters, NameStore(data_dir / NAMES), GateJournals(data_dir / CALIBRATIONS))
    objects = open_objects(url, timeout_seconds)
    cache = FolderCache(data_dir / CACHE, cache_bytes)
    try:
        shared = SharedAdapterStore(objects, cache, fresh_seconds)
    except BaseException:
        cache.close()
        raise
    names = NameStore(SharedJournals(objects, NAMES, NAME, "name"), fresh_seconds)
    return Stores(shared, names, SharedGateJournals(objects), fresh_seconds, objects)
