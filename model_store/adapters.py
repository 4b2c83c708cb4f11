"""The durable store of adapted task posteriors: one folder for each adapter id.

<root>/.lock                       held by the process that owns the store
<root>/adp_<hex>/manifest.json     `AdapterManifest`
                 posterior.safetensors
                 seal.json         digests of the two
                 diagnosis.json    `Diagnosis` with its own digest; only once there is one
<root>/.damaged/                   entries that did not match their seal, kept for whoever investigates
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from filelock import FileLock, Timeout

from abmll.assurance.diagnostics import Diagnosis
from abmll.assurance.held_out import HeldOut
from abmll.decoder.layout import Site
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.posteriors import TaskPosterior
from abmll.text.tasks import Example
from model_store.diagnoses import read_diagnosis, write_diagnosis
from model_store.errors import (
    CorruptArtifactError,
    StoreInUseError,
    UnknownArtifactError,
    UnsupportedFormatError,
)
from model_store.identity import BaseIdentity
from model_store.storage import check_seal, folder_bytes, remove, require_free_space, seal, staged, sweep
from model_store.tensors import canonical_json, read_tensors, sites_from_json, sites_to_json, write_tensors

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_DAMAGED = ".damaged"
ADAPTER_ID = re.compile(r"adp_[0-9a-f]{8,64}")
_log = logging.getLogger(__name__)

Record = TypeVar("Record")


@dataclass(frozen=True)
class SupportRecord:
    """The examples an adapter was made from. `options` are those that all examples share, else empty."""

    examples: tuple[Example, ...]
    tokens: int
    options: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, examples: Sequence[Example], tokens: int) -> Self:
        """The record of `examples` with `tokens` tokens; the digest is of their texts in this order."""
        shared = {example.options for example in examples}
        options = examples[0].options if len(shared) == 1 else ()
        digest = hashlib.sha256(canonical_json([asdict(example) for example in examples])).hexdigest()
        return cls(tuple(examples), tokens, options, digest)

    @property
    def n(self) -> int:
        """How many examples."""
        return len(self.examples)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {"n": self.n, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        examples = (Example(row["input"], row["output"], tuple(row["options"])) for row in values["examples"])
        return cls(tuple(examples), values["tokens"], tuple(values["options"]), values["digest"])


@dataclass(frozen=True)
class AdapterManifest:
    """What an adapter is and everything that determined it; `losses` are in nats per example, by step.

    `created` is a UTC time in ISO 8601; `settings` are plain values, `AdaptSettings` and what else counts. `held_out` is what
    chose the temperature in `config`, where that is the adapter's own.
    """

    id: str
    created: str
    base: BaseIdentity
    posterior_id: str
    posterior_digest: str
    settings: Mapping[str, Any]
    seed: int
    support: SupportRecord
    losses: tuple[float, ...]
    warnings: tuple[str, ...]
    config: PosteriorConfig
    sites: tuple[Site, ...]
    held_out: HeldOut | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain values for `manifest.json`."""
        return {
            "format_version": self.format_version,
            "id": self.id,
            "created": self.created,
            "base": self.base.to_json(),
            "posterior_id": self.posterior_id,
            "posterior_digest": self.posterior_digest,
            "settings": dict(self.settings),
            "seed": self.seed,
            "support": self.support.to_json(),
            "losses": list(self.losses),
            "warnings": list(self.warnings),
            "config": self.config.to_json(),
            "sites": sites_to_json(self.sites),
            **({"held_out": asdict(self.held_out)} if self.held_out else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises `UnsupportedFormatError` for the format of another version."""
        if values["format_version"] != FORMAT_VERSION:
            found = values["format_version"]
            raise UnsupportedFormatError(
                f"adapter format {found!r} is not the one read here, {FORMAT_VERSION}"
            )
        return cls(
            **{
                **values,
                "base": BaseIdentity.from_json(values["base"]),
                "support": SupportRecord.from_json(values["support"]),
                "losses": tuple(values["losses"]),
                "warnings": tuple(values["warnings"]),
                "config": PosteriorConfig.from_json(values["config"]),
                "sites": sites_from_json(values["sites"]),
                "held_out": HeldOut(**values["held_out"]) if "held_out" in values else None,
            }
        )


@dataclass(frozen=True)
class StoredAdapter:
    """An adapted task posterior with its manifest, and its diagnosis once it has one."""

    manifest: AdapterManifest
    posterior: TaskPosterior
    diagnosis: Diagnosis | None = None


class AdapterStore:
    """Adapted posteriors on disk, below `root`. One process owns a root; its threads may share the store.

    When `put` has returned, the adapter survives a crash; when it has not, nothing of it is visible. An entry
    that does not match its seal is never returned but moved aside and logged, as if it had never been there.

    One mutex covers every operation, so that no folder is removed while another thread reads it. An operation
    takes tens of milliseconds (adapters of the embedded default have 9 MB); callers cache what they use.
    """

    def __init__(self, root: Path) -> None:
        """Own `root`, creating it, and remove what interrupted writes left.

        Raises `StoreInUseError` while another live process, or another store of this one, owns it.
        """
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._mutex = threading.Lock()
        self._owner = FileLock(root / ".lock", thread_local=False)
        try:
            self._owner.acquire(timeout=0)
        except Timeout as error:
            raise StoreInUseError(f"another process uses the adapter store {root}") from error
        sweep(root)
        self._bytes = {id: folder_bytes(root / id) for id in self._ids()}
        self._total_bytes = sum(self._bytes.values())

    def close(self) -> None:
        """Let another process own the root."""
        self._owner.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def total_bytes(self) -> int:
        """Bytes of all adapters on disk."""
        return self._total_bytes

    def put(self, adapter: StoredAdapter) -> None:
        """Store `adapter` durably. One that is already there stays: an id names one content.

        Raises `StorageFullError`, with nothing stored, and `ValueError` for an id that is not `adp_` and
        hexadecimal digits, or a manifest that does not describe the posterior.
        """
        manifest, posterior = adapter.manifest, adapter.posterior
        if not ADAPTER_ID.fullmatch(manifest.id):
            raise ValueError(f"not an adapter id: {manifest.id!r}")
        if (manifest.config, manifest.sites) != (posterior.config, posterior.sites):
            raise ValueError("the manifest does not describe the posterior")
        folder = self._root / manifest.id
        what = f"adapter {manifest.id}"
        with self._mutex:
            if self._read(manifest.id, _read_adapter) is not None:
                return
            require_free_space(self._root, posterior.nbytes + 2**20, what)
            with staged(folder, what) as staging:
                write_tensors(staging, posterior)
                (staging / _MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1), encoding="utf-8")
                seal(staging)
            self._account(manifest.id, folder_bytes(folder))

    def put_diagnosis(self, id: str, diagnosis: Diagnosis) -> bool:
        """Keep the diagnosis of an adapter durably, in place of an earlier one; whether there is such an adapter.

        Raises `StorageFullError`, with what was there kept.
        """
        folder = self._root / id
        with self._mutex:
            if not ADAPTER_ID.fullmatch(id) or not folder.is_dir():
                return False
            write_diagnosis(folder, diagnosis)
            self._account(id, folder_bytes(folder))
        return True

    def get(self, id: str) -> StoredAdapter | None:
        """The adapter, or None where there is none (or no intact one) under `id`, whatever text that is."""
        if not ADAPTER_ID.fullmatch(id):
            return None
        with self._mutex:
            return self._read(id, _read_adapter)

    def list(self, after: str | None, limit: int) -> list[AdapterManifest]:
        """Manifests of at most `limit` adapters in the order of their ids, of those behind `after`."""
        page: list[AdapterManifest] = []
        with self._mutex:
            for id in self._ids():
                if len(page) == limit:
                    break
                if after is None or id > after:
                    manifest = self._read(id, _read_manifest)
                    page += [] if manifest is None else [manifest]
        return page

    def delete(self, id: str) -> bool:
        """Remove the adapter durably; whether there was one."""
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
            _log.error("%s is moved aside: %s", id, error)
            self._account(id, 0)
            damaged = self._root / _DAMAGED
            damaged.mkdir(exist_ok=True)
            folder.rename(damaged / f"{id}-{uuid.uuid4().hex[:8]}")
        return None


def read_adapter(root: Path, id: str) -> StoredAdapter:
    """The adapter `id` in the store at `root`, whoever owns that store: a server may go on using it.

    Raises `UnknownArtifactError` where there is none, `CorruptArtifactError` or `UnsupportedFormatError`.
    """
    folder = root / id
    if not ADAPTER_ID.fullmatch(id) or not folder.is_dir():
        raise UnknownArtifactError(f"no adapter {id!r} in {root}")
    return _read_adapter(folder)


def _read_manifest(folder: Path) -> AdapterManifest:
    check_seal(folder, _MANIFEST)
    return _parse_manifest(folder)


def _read_adapter(folder: Path) -> StoredAdapter:
    check_seal(folder)
    manifest = _parse_manifest(folder)
    posterior = read_tensors(folder, TaskPosterior, manifest.config, manifest.sites)
    return StoredAdapter(manifest, posterior, read_diagnosis(folder))


def _parse_manifest(folder: Path) -> AdapterManifest:
    try:
        return AdapterManifest.from_json(json.loads((folder / _MANIFEST).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"the manifest of {folder.name} cannot be read: {error!r}") from error
