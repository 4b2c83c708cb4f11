"""Adapters on this machine's disk, in front of a shared store.

<root>/.lock          held by the process that owns the cache
<root>/adp_<hex>/     as in `AdapterStore`, with a diagnosis where the store has one
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from model_store.adapters.diagnoses import DIAGNOSIS_FILE
from model_store.adapters.manifest import ADAPTER_ID
from model_store.adapters.store import StoredAdapter, own_folder, read_folder
from model_store.errors import CorruptArtifactError
from model_store.storage import (
    SEAL_FILE,
    folder_bytes,
    refusal_is_an_error,
    remove,
    require_free_space,
    seal,
    staged,
    sweep,
)


class FolderCache:
    """Holds at most `limit_bytes` of adapters below `root`; the least recently used go first.

    One process owns a root; its threads may share the cache. What does not match its digests is
    removed when it is read.
    """

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """Own `root`, creating it. Raises `StoreInUseError` and `UnusableFolderError`."""
        self._root, self._limit_bytes = root, limit_bytes
        self._mutex = threading.Lock()
        with refusal_is_an_error("adapters"):
            self._owner = own_folder(root)
            sweep(root)
            folders = [path for path in root.iterdir() if ADAPTER_ID.fullmatch(path.name)]
        folders.sort(key=lambda path: path.stat().st_mtime)
        self._bytes = OrderedDict((path.name, folder_bytes(path)) for path in folders)
        self._evict()

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all adapters here."""
        return sum(self._bytes.values())

    def close(self) -> None:
        """Let another process own the root."""
        self._owner.release()

    def get(self, id: str, digests: Mapping[str, str], diagnosis: bytes | None) -> StoredAdapter | None:
        """Return the adapter if its files here have these digests, with the diagnosis given.

        Raises `UnsupportedFormatError`.
        """
        with self._mutex, refusal_is_an_error(f"adapter {id}"):
            folder = self._root / id
            try:
                if json.loads((folder / SEAL_FILE).read_text(encoding="utf-8")) != digests:
                    raise CorruptArtifactError(f"{id} is not what the store has")
                adapter = _with_diagnosis(folder, diagnosis)
            except (FileNotFoundError, ValueError, CorruptArtifactError):
                self._drop(id)
                return None
            os.utime(folder)
            self._bytes.move_to_end(id)
            return adapter

    def put(
        self, id: str, files: Mapping[str, bytes], digests: Mapping[str, str], diagnosis: bytes | None
    ) -> StoredAdapter:
        """Write the files of an adapter, and read it from them.

        Raises `CorruptArtifactError` where they do not have the digests or are no adapter, with
        nothing kept, `UnsupportedFormatError` and `StorageFullError`.
        """
        with self._mutex:
            what = f"adapter {id}"
            size = sum(map(len, files.values()))
            require_free_space(self._root, size + 2**20, what)
            folder = self._root / id
            self._bytes.pop(id, None)
            with staged(folder, what) as staging:
                for name, data in files.items():
                    (staging / name).write_bytes(data)
                seal(staging)
                if json.loads((staging / SEAL_FILE).read_text(encoding="utf-8")) != digests:
                    raise CorruptArtifactError(f"{id} does not match its digests")
            self._bytes[id] = folder_bytes(folder)
            try:
                return _with_diagnosis(folder, diagnosis)
            except CorruptArtifactError:
                self._drop(id)
                raise
            finally:
                self._evict()

    def drop(self, id: str) -> None:
        """Remove the adapter from this machine's disk, where it is there."""
        with self._mutex:
            self._drop(id)

    def _drop(self, id: str) -> None:
        self._bytes.pop(id, None)
        remove(self._root / id)

    def _evict(self) -> None:
        while self._bytes and self.total_bytes > self._limit_bytes:
            self._drop(next(iter(self._bytes)))


def _with_diagnosis(folder: Path, diagnosis: bytes | None) -> StoredAdapter:
    if diagnosis is None:
        (folder / DIAGNOSIS_FILE).unlink(missing_ok=True)
    else:
        (folder / DIAGNOSIS_FILE).write_bytes(diagnosis)
    return read_folder(folder)
