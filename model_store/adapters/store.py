"""The durable store of adapters: one folder for each adapter id.

    <root>/.lock                       held by the process that owns the store
    <root>/adp_<hex>/manifest.json     `AdapterManifest`
                     posterior.safetensors
                     seal.json         digests of the two
                     diagnosis.json    `Diagnosis` with its own digest, once there is one
    <root>/.damaged/                   entries that did not match their seal

Damaged entries are kept for whoever investigates.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from filelock import FileLock, Timeout

from abmll.assurance.diagnostics import Diagnosis
from abmll.posterior.posteriors import TaskPosterior
from model_store.adapters.diagnoses import read_diagnosis, write_diagnosis
from model_store.adapters.findings import Finding, verify_each
from model_store.adapters.manifest import ADAPTER_ID, AdapterManifest
from model_store.errors import (
    CorruptArtifactError,
    StoreInUseError,
    UnknownArtifactError,
    UnsupportedFormatError,
)
from model_store.storage import (
    DAMAGED,
    SEAL_FILE,
    check_seal,
    finite_json,
    finite_text,
    folder_bytes,
    refusal_is_an_error,
    remove,
    require_free_space,
    seal,
    staged,
    sweep,
)
from model_store.tensors import TENSORS_FILE, check_finite, read_tensors, write_tensors

MANIFEST_FILE = "manifest.json"
_log = logging.getLogger(__name__)

Record = TypeVar("Record")


@dataclass(frozen=True)
class StoredAdapter:
    """A task posterior with its manifest, and its diagnosis once it has one."""

    manifest: AdapterManifest
    posterior: TaskPosterior
    diagnosis: Diagnosis | None = None


class AdapterStore:
    """Owns the adapters on disk below `root`.

    One process owns a root; its threads may share the store. When `put` has returned, the adapter
    survives a crash. When it has not, nothing of it is visible. An entry that does not match its
    seal is never returned: it is moved aside and logged, as if it had never been there.

    One mutex covers every operation, so that no folder is removed while another thread reads it. An
    operation takes tens of milliseconds (adapters of the embedded default have 9 MB). Callers cache
    what they use.
    """

    def __init__(self, root: Path) -> None:
        """Own `root`, creating it, and remove what interrupted writes left.

        Raises `StoreInUseError` while another live process, or another store of this one, owns it,
        and `UnusableFolderError`.
        """
        self._root = root
        self._mutex = threading.Lock()
        with refusal_is_an_error("adapters"):
            self._owner = own_folder(root)
            sweep(root)
            self._bytes = {id: folder_bytes(root / id) for id in self._ids()}
        self._total_bytes = sum(self._bytes.values())

    def is_current(self, id: str) -> bool:
        """Return that this process may use the adapter in its memory: nobody else changes the root."""
        return True

    def close(self) -> None:
        """Let another process own the root."""
        self._owner.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all adapters on disk."""
        return self._total_bytes

    def usage(self) -> tuple[int, int]:
        """Return how many adapters are on disk, and their bytes."""
        return len(self._bytes), self._total_bytes

    def put(self, adapter: StoredAdapter) -> None:
        """Store `adapter` durably. One that is already there stays: an id names one content.

        Raises `StorageFullError` and `NonFiniteError`, with nothing stored. Raises `ValueError` for
        an id that is not `adp_` and hexadecimal digits, or for a manifest that does not describe
        the posterior.
        """
        text = checked_text(adapter)
        manifest, posterior = adapter.manifest, adapter.posterior
        folder = self._root / manifest.id
        what = f"adapter {manifest.id}"
        with self._mutex:
            if self._read(manifest.id, read_folder) is not None:
                return
            require_free_space(self._root, posterior.nbytes + 2**20, what)
            with staged(folder, what) as staging:
                write_folder(staging, posterior, text)
            self._account(manifest.id, folder_bytes(folder))

    def put_diagnosis(self, id: str, diagnosis: Diagnosis) -> bool:
        """Keep the diagnosis of an adapter durably, and return whether there is such an adapter.

        An earlier diagnosis is replaced. Raises `StorageFullError`, with the earlier one kept.
        """
        folder = self._root / id
        with self._mutex:
            if not ADAPTER_ID.fullmatch(id) or not folder.is_dir():
                return False
            write_diagnosis(folder, diagnosis)
            self._account(id, folder_bytes(folder))
        return True

    def get(self, id: str) -> StoredAdapter | None:
        """Return the adapter, or None where there is no intact one. `id` may be any text."""
        if not ADAPTER_ID.fullmatch(id):
            return None
        with self._mutex:
            return self._read(id, read_folder)

    def manifest(self, id: str) -> AdapterManifest | None:
        """Return the adapter's manifest, or None where there is no intact one. `id` may be any
        text.
        """
        if not ADAPTER_ID.fullmatch(id):
            return None
        with self._mutex:
            return self._read(id, _read_manifest)

    def has(self, id: str) -> bool:
        """Return whether there is an adapter `id`, intact or not."""
        with self._mutex:
            return bool(ADAPTER_ID.fullmatch(id)) and (self._root / id).is_dir()

    def list(self, after: str | None, limit: int) -> list[AdapterManifest]:
        """Return the manifests of at most `limit` adapters, in the order of their ids.

        With `after`, only ids behind it count.
        """
        page: list[AdapterManifest] = []
        with self._mutex:
            for id in self._ids():
                if len(page) == limit:
                    break
                if after is None or id > after:
                    manifest = self._read(id, _read_manifest)
                    page += [] if manifest is None else [manifest]
        return page

    def touch(self, id: str) -> None:
        """Write down that the adapter, if it is there, is used now."""
        if ADAPTER_ID.fullmatch(id):
            with suppress(FileNotFoundError):
                os.utime(self._root / id / SEAL_FILE)

    def last_used_before(self, moment: float) -> Sequence[str]:
        """Return the ids of adapters that were made and last used before this time of the epoch, in
        s.
        """
        found = []
        for id in self._ids():
            with suppress(FileNotFoundError):
                if (self._root / id / SEAL_FILE).stat().st_mtime < moment:
                    found.append(id)
        return found

    def verify(self) -> tuple[int, Sequence[Finding]]:
        """Read every adapter whole; return how many are intact, and what is wrong with the others.

        Damaged, foreign and non-finite entries are moved aside, as when they are read.
        """
        with self._mutex:
            return verify_each(self._ids(), lambda id: read_folder(self._root / id), self._move_aside)

    def delete(self, id: str) -> bool:
        """Remove the adapter durably, and return whether there was one."""
        if not ADAPTER_ID.fullmatch(id):
            return False
        with self._mutex:
            removed = remove(self._root / id)
            self._account(id, 0)
            return removed

    def _account(self, id: str, size_bytes: int) -> None:
        self._total_bytes += size_bytes - self._bytes.pop(id, 0)
        if size_bytes:
            self._bytes[id] = size_bytes

    def _ids(self) -> Sequence[str]:
        return sorted(path.name for path in self._root.iterdir() if ADAPTER_ID.fullmatch(path.name))

    def _read(self, id: str, read: Callable[[Path], Record]) -> Record | None:
        folder = self._root / id
        if not folder.is_dir():
            return None
        try:
            return read(folder)
        except UnsupportedFormatError as error:
            _log.warning("%s is ignored: %s", id, error)
        except CorruptArtifactError as error:
            self._move_aside(id, error)
        return None

    def _move_aside(self, id: str, error: CorruptArtifactError) -> None:
        _log.error("%s is moved aside: %s", id, error)
        self._account(id, 0)
        damaged = self._root / DAMAGED
        damaged.mkdir(exist_ok=True)
        (self._root / id).rename(damaged / f"{id}-{uuid.uuid4().hex[:8]}")


def read_adapter(root: Path, id: str) -> StoredAdapter:
    """Read the adapter `id` in the store at `root`, whichever process owns that store.

    A server may go on using it. Raises `UnknownArtifactError` where there is no such adapter,
    `CorruptArtifactError` or `UnsupportedFormatError`.
    """
    folder = root / id
    if not ADAPTER_ID.fullmatch(id) or not folder.is_dir():
        raise UnknownArtifactError(f"no adapter {id!r} in {root}")
    return read_folder(folder)


def own_folder(root: Path) -> FileLock:
    """Own `root`, creating it, until the lock that is returned is released.

    Raises `StoreInUseError` while another live process owns it, or another lock of this one.
    """
    root.mkdir(parents=True, exist_ok=True)
    owner = FileLock(root / ".lock", thread_local=False)
    try:
        owner.acquire(timeout=0)
    except Timeout as error:
        raise StoreInUseError(
            f"another process uses the adapter store {root}: if it is a server, send it the "
            "request over HTTP; else wait for it, or name another folder by --data-dir"
        ) from error
    return owner


def checked_text(adapter: StoredAdapter) -> str:
    """Return the text of the adapter's manifest. Raises as `AdapterStore.put`."""
    manifest, posterior = adapter.manifest, adapter.posterior
    if not ADAPTER_ID.fullmatch(manifest.id):
        raise ValueError(f"not an adapter id: {manifest.id!r}")
    if (manifest.config, manifest.sites) != (posterior.config, posterior.sites):
        raise ValueError("the manifest does not describe the posterior")
    if posterior.has_values == manifest.without_values:
        raise ValueError("the manifest does not say whether the posterior has values")
    check_finite(posterior.to_tensors())
    return finite_text(manifest.to_json())


def write_folder(folder: Path, posterior: TaskPosterior, manifest: str) -> None:
    """Write an adapter into an empty folder, sealed last."""
    write_tensors(folder, posterior)
    (folder / MANIFEST_FILE).write_text(manifest, encoding="utf-8")
    seal(folder)


def parse_manifest(text: str, id: str) -> AdapterManifest:
    """Return the manifest of the adapter `id`.

    Raises `CorruptArtifactError` for a text that is none, and `UnsupportedFormatError`.
    """
    try:
        manifest = AdapterManifest.from_json(finite_json(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifactError(f"the manifest of {id} cannot be read: {error!r}") from error
    if manifest.id != id:
        raise CorruptArtifactError(f"{id} has the manifest of another adapter, {manifest.id}")
    return manifest


def read_folder(folder: Path) -> StoredAdapter:
    """Read the adapter in the folder of its id. Raises as `read_adapter`."""
    check_seal(folder, MANIFEST_FILE, TENSORS_FILE)
    manifest = _manifest_in(folder)
    posterior = read_tensors(folder, TaskPosterior, manifest.config, manifest.sites)
    if posterior.has_values == manifest.without_values:
        raise CorruptArtifactError(f"the manifest of {folder.name} does not say whether it has values")
    return StoredAdapter(manifest, posterior, read_diagnosis(folder))


def _read_manifest(folder: Path) -> AdapterManifest:
    check_seal(folder, MANIFEST_FILE)
    return _manifest_in(folder)


def _manifest_in(folder: Path) -> AdapterManifest:
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, ValueError) as error:
        raise CorruptArtifactError(f"the manifest of {folder.name} cannot be read: {error!r}") from error
    return parse_manifest(text, folder.name)
