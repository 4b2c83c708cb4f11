"""The store of adapters among objects, which several processes use; `AdapterStore` is the other
kind.

    store.json                            the format of all
    adapters/<id>.json                    manifest, digests of the files, and where the tensors are
    tensors/<id>/<own id>.safetensors
    diagnoses/<id>.json                   once there is one
    damaged/adapters/<id>-<own id>.json   records that did not match what they name

An adapter is there when its record is: the record is written last, by whoever is first, and deleted
first. Tensors have a name of their own for each `put`, so that a deletion never removes those of a
later adapter of the same id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from abmll.assurance.diagnostics import Diagnosis
from model_store.adapters.diagnoses import diagnosis_text
from model_store.adapters.findings import Finding, verify_each
from model_store.adapters.folder_cache import FolderCache
from model_store.adapters.manifest import ADAPTER_ID, AdapterManifest
from model_store.adapters.shared_journals import DAMAGED
from model_store.adapters.store import (
    MANIFEST_FILE,
    StoredAdapter,
    checked_text,
    parse_manifest,
    write_folder,
)
from model_store.errors import CorruptArtifactError, StoreError, UnsupportedFormatError
from model_store.objects.contract import Objects
from model_store.storage import SEAL_FILE, finite_json, refusal_is_an_error
from model_store.tensors import TENSORS_FILE

FORMAT_VERSION = 1
STORE = "store.json"
RECORDS, TENSORS, DIAGNOSES, USES = "adapters", "tensors", "diagnoses", "uses"
_READERS = 8  # reads at a time
_MOST_LOOKS = 10_000
_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class StoredRecord:
    """What the store says of an adapter: the text of its manifest, its files' digests, its tensors'
    key.
    """

    manifest: str
    digests: dict[str, str]
    tensors: str


class SharedAdapterStore:
    """Owns no adapters: those below `objects`, as `Adapters`, for many processes.

    It owns the folder of its cache. What another process stored or deleted is seen at once by
    `get`, `has`, `manifest` and `list`; `is_current` says for how long a caller goes without them.
    """

    def __init__(self, objects: Objects, cache: FolderCache, fresh_seconds: float) -> None:
        """Use the adapters of `objects`. Raises `StoreUnavailableError` and
        `UnsupportedFormatError`.
        """
        self._objects, self._cache, self._fresh_seconds = objects, cache, fresh_seconds
        self._mutex = threading.Lock()
        self._looked_at: dict[str, float] = {}
        check_format(objects)

    def close(self) -> None:
        """Let another process own the cache."""
        self._cache.close()

    def __enter__(self) -> SharedAdapterStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def total_bytes(self) -> int:
        """Return the bytes of the adapters in the cache."""
        return self._cache.total_bytes

    def touch(self, id: str) -> None:
        """Write down that the adapter, if it is there, is used now, by the clock of the objects'
        place.
        """
        if self.has(id):
            self._objects.put(_use_key(id), b"{}")

    def last_used_before(self, moment: float) -> Sequence[str]:
        """Return the ids of adapters that were made and last used before this time of the epoch, in
        s.
        """
        used = {listed.key: listed.modified.timestamp() for listed in self._objects.list(f"{USES}/")}
        return [
            id
            for listed in self._objects.list(f"{RECORDS}/")
            if ADAPTER_ID.fullmatch(id := listed.key.removeprefix(f"{RECORDS}/").removesuffix(".json"))
            and max(listed.modified.timestamp(), used.get(_use_key(id), 0.0)) < moment
        ]

    def usage(self) -> tuple[int, int]:
        """Return how many adapters all servers have stored, and the bytes of their tensors."""
        return len(self.ids()), sum(listed.size_bytes for listed in self._objects.list(f"{TENSORS}/"))

    def is_current(self, id: str) -> bool:
        """Return whether the adapter was there a moment ago, at most `fresh_seconds`."""
        return time.monotonic() - self._looked_at.get(id, -self._fresh_seconds) < self._fresh_seconds

    def put(self, adapter: StoredAdapter) -> None:
        """Store `adapter` durably. One that is already there stays: an id names one content.

        Raises as `AdapterStore.put`, and `StoreUnavailableError`: it may be there then, whole.
        """
        text, id = checked_text(adapter), adapter.manifest.id
        if self.get(id) is not None:
            return
        with refusal_is_an_error(f"adapter {id}"), tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), adapter.posterior, text)
            digests = json.loads((Path(folder) / SEAL_FILE).read_text(encoding="utf-8"))
            tensors = (Path(folder) / TENSORS_FILE).read_bytes()
        key = f"{TENSORS}/{id}/{uuid.uuid4().hex}.safetensors"
        self._objects.put(key, tensors)
        record = json.dumps(
            {"format_version": FORMAT_VERSION, "digests": digests, "tensors": key, "manifest": text}
        ).encode()
        while self._objects.create(_key(id), record) is None:
            theirs = self._objects.get(_key(id))
            if theirs is None:  # it was deleted in between
                continue
            try:
                parse_manifest(_parsed(id, theirs.data).manifest, id)
            except (UnsupportedFormatError, CorruptArtifactError):  # replaced, as in `AdapterStore`
                if self._objects.replace(_key(id), record, theirs.tag) is not None:
                    break
            else:
                with suppress(StoreError):
                    self._objects.delete(key)
                return
        self._look(id, time.monotonic())

    def put_diagnosis(self, id: str, diagnosis: Diagnosis) -> bool:
        """Keep the diagnosis of an adapter durably, and return whether there is such an adapter."""
        if not self.has(id):
            return False
        self._objects.put(_diagnosis_key(id), diagnosis_text(diagnosis).encode())
        if self.has(id):
            return True
        self._objects.delete(_diagnosis_key(id))  # the adapter was deleted meanwhile
        return False

    def get(self, id: str) -> StoredAdapter | None:
        """Return the adapter, or None where there is no intact one. `id` may be any text."""
        return self._read(id, lambda record: self._adapter(id, record))

    def manifest(self, id: str) -> AdapterManifest | None:
        """Return the adapter's manifest, or None where there is no intact one. `id` may be any
        text.
        """
        return self._read(id, lambda record: parse_manifest(record.manifest, id))

    def record(self, id: str) -> StoredRecord | None:
        """Return what the store says of the adapter; None where it says nothing.

        Raises `CorruptArtifactError` and `UnsupportedFormatError`.
        """
        found = self._objects.get(_key(id))
        return None if found is None else _parsed(id, found.data)

    def has(self, id: str) -> bool:
        """Return whether there is an adapter `id`, intact or not."""
        now = time.monotonic()
        there = bool(ADAPTER_ID.fullmatch(id)) and self._objects.tag(_key(id)) is not None
        self._look(id, now if there else None)
        return there

    def ids(self, after: str | None = None) -> list[str]:
        """Return the ids of all adapters behind `after`, in their order."""
        offset = _key(after) if after and ADAPTER_ID.fullmatch(after) else None
        keys = (listed.key for listed in self._objects.list(f"{RECORDS}/", offset))
        found = (key.removeprefix(f"{RECORDS}/").removesuffix(".json") for key in keys)
        return [id for id in found if ADAPTER_ID.fullmatch(id) and (after is None or id > after)]

    def list(self, after: str | None, limit: int) -> list[AdapterManifest]:
        """Return the manifests of at most `limit` adapters behind `after`, in the order of their
        ids.
        """
        ids = iter(self.ids(after))
        found: list[AdapterManifest] = []
        with ThreadPoolExecutor(_READERS) as pool:
            while len(found) < limit and (some := list(islice(ids, limit - len(found)))):
                found += chain.from_iterable([m] if m else [] for m in pool.map(self.manifest, some))
        return found

    def verify(self) -> tuple[int, Sequence[Finding]]:
        """Read every adapter whole; return how many are intact, and what is wrong with the others.

        Damaged ones are moved aside. What is in the cache counts only with the store's digests.
        """

        def read(id: str) -> None:
            record = self.record(id)
            if record is not None:  # else it was deleted meanwhile
                self._downloaded(id, record)

        return verify_each(self.ids(), read, self._move_aside)

    def delete(self, id: str) -> bool:
        """Remove the adapter durably, and return whether there was one."""
        if not ADAPTER_ID.fullmatch(id):
            return False
        self._look(id, None)
        self._cache.drop(id)
        record = None
        with suppress(CorruptArtifactError, UnsupportedFormatError):
            record = self.record(id)
        deleted = self._objects.delete(_key(id))
        with suppress(StoreError):  # `abmll store gc` finds what is left
            self._objects.delete(_diagnosis_key(id))
            self._objects.delete(_use_key(id))
            if record is not None:
                self._objects.delete(record.tensors)
        return deleted

    def _look(self, id: str, now: float | None) -> None:
        """Note when the adapter was there; None where it is not."""
        with self._mutex:
            self._looked_at.pop(id, None)
            if now is not None:
                self._looked_at[id] = now
                if len(self._looked_at) > _MOST_LOOKS:
                    del self._looked_at[next(iter(self._looked_at))]

    def _read(self, id: str, read: Callable[[StoredRecord], T]) -> T | None:
        """Return what `read` makes of the record.

        A damaged adapter is read once more, then moved aside, and counts as none.
        """
        if not ADAPTER_ID.fullmatch(id):
            return None
        now, seen, result = time.monotonic(), list[StoredRecord](), None
        try:
            while (record := self.record(id)) is not None:
                seen.append(record)
                try:
                    result = read(record)
                    break
                except CorruptArtifactError:
                    if seen.count(record) == 2:
                        raise
                    # Else its answer was damaged, or it was deleted, and perhaps made again,
                    # meanwhile.
        except UnsupportedFormatError as error:
            _log.warning("%s is ignored: %s", id, error)
        except CorruptArtifactError as error:
            self._move_aside(id, error)
        self._look(id, None if result is None else now)
        if result is None:
            self._cache.drop(id)
        return result

    def _adapter(self, id: str, record: StoredRecord) -> StoredAdapter:
        diagnosis = self._diagnosis(id)
        return self._cache.get(id, record.digests, diagnosis) or self._downloaded(id, record, diagnosis)

    def _diagnosis(self, id: str) -> bytes | None:
        found = self._objects.get(_diagnosis_key(id))
        return None if found is None else found.data

    def _downloaded(self, id: str, record: StoredRecord, diagnosis: bytes | None = None) -> StoredAdapter:
        tensors = self._objects.get(record.tensors)
        if tensors is None:
            raise CorruptArtifactError(f"the tensors of {id} are not there")
        files = {MANIFEST_FILE: record.manifest.encode(), TENSORS_FILE: tensors.data}
        return self._cache.put(id, files, record.digests, diagnosis)

    def _move_aside(self, id: str, error: CorruptArtifactError) -> None:
        """Move the record aside, unless another process has put an intact one in its place
        meanwhile.
        """
        found = self._objects.get(_key(id))
        if found is not None and self._is_damaged(id, found.data):
            _log.error("%s is moved aside: %s", id, error)
            self._objects.put(f"{DAMAGED}/{RECORDS}/{id}-{uuid.uuid4().hex[:8]}.json", found.data)
            if self._objects.tag(_key(id)) == found.tag:
                self._objects.delete(_key(id))

    def _is_damaged(self, id: str, data: bytes) -> bool:
        try:
            record = _parsed(id, data)
            parse_manifest(record.manifest, id)
            self._downloaded(id, record)
        except CorruptArtifactError:
            return True
        except UnsupportedFormatError:
            return False
        return False


def check_format(objects: Objects) -> None:
    """Make the mark of the format of a store, or check the one that is there.

    Raises `UnsupportedFormatError`, `CorruptArtifactError` and `StoreUnavailableError`.
    """
    content = json.dumps({"format_version": FORMAT_VERSION}).encode()
    found = objects.get(STORE)
    if found is None and objects.create(STORE, content) is None:
        found = objects.get(STORE)
    try:
        version = FORMAT_VERSION if found is None else finite_json(found.data.decode())["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{STORE} of {objects.name} cannot be read: {error!r}") from error
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"the store {objects.name} has format {version!r}; the one read here is {FORMAT_VERSION}"
        )


def _key(id: str) -> str:
    return f"{RECORDS}/{id}.json"


def _use_key(id: str) -> str:
    return f"{USES}/{id}.json"


def _diagnosis_key(id: str) -> str:
    return f"{DIAGNOSES}/{id}.json"


def _parsed(id: str, data: bytes) -> StoredRecord:
    """Return the record of the adapter. Raises `CorruptArtifactError` and `UnsupportedFormatError`."""
    try:
        values = finite_json(data.decode())
        if values["format_version"] != FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"the record of {id} has format {values['format_version']!r}; the one read here is {FORMAT_VERSION}"
            )
        digests, key = dict(values["digests"]), values["tensors"]
        text = values["manifest"].encode()
        if digests.keys() != {MANIFEST_FILE, TENSORS_FILE} or not key.startswith(f"{TENSORS}/{id}/"):
            raise CorruptArtifactError(f"the record of {id} names other files")
        if hashlib.sha256(text).hexdigest() != digests[MANIFEST_FILE]:
            raise CorruptArtifactError(f"the manifest of {id} does not match its digest")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifactError(f"the record of {id} cannot be read: {error!r}") from error
    return StoredRecord(values["manifest"], digests, key)
