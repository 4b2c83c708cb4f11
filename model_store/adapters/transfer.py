"""A store as one tar file: for a backup, and to move between kinds of stores.

    store.json                              the format of the file
    adapters/<id>/manifest.json, posterior.safetensors, seal.json, and diagnosis.json if there is one
    names/<name>/journal.jsonl
    calibrations/<key>/journal.jsonl

These are the files of a folder of stores. An adapter of an older form is written in the present
one.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model_store.adapters.contract import ABSENT, Record, RecordJournals
from model_store.adapters.diagnoses import DIAGNOSIS_FILE, write_diagnosis
from model_store.adapters.gate_journals import FOLDER as CALIBRATIONS
from model_store.adapters.gate_journals import GateJournals
from model_store.adapters.journal_lines import encoded
from model_store.adapters.journals import JOURNAL_FILE, Journals
from model_store.adapters.manifest import ADAPTER_ID
from model_store.adapters.names import FOLDER as NAMES
from model_store.adapters.names import NAME, NameHistory
from model_store.adapters.opening import Stores
from model_store.adapters.shared_store import RECORDS, STORE
from model_store.adapters.store import MANIFEST_FILE, StoredAdapter, read_folder, write_folder
from model_store.errors import (
    CorruptArtifactError,
    FolderNotEmptyError,
    JournalChangedError,
    UnsupportedFormatError,
)
from model_store.storage import SEAL_FILE, finite_json, finite_text, refusal_is_an_error
from model_store.tensors import TENSORS_FILE

FORMAT_VERSION = 1
_PAGE = 100
_FILES = "|".join(map(re.escape, (MANIFEST_FILE, TENSORS_FILE, SEAL_FILE, DIAGNOSIS_FILE)))
_MEMBER = re.compile(
    rf"{re.escape(STORE)}|{RECORDS}/{ADAPTER_ID.pattern}/({_FILES})|{NAMES}/{NAME.pattern}/{re.escape(JOURNAL_FILE)}"
    rf"|{CALIBRATIONS}/{ADAPTER_ID.pattern}(\.[0-9a-f]{{16}})?/{re.escape(JOURNAL_FILE)}"
)
Check = Callable[[str, Sequence[Record]], object]


@dataclass(frozen=True)
class Moved:
    """What became of an entry: `added`, there `already`, or left out because of a `conflict`."""

    kind: str
    id: str
    outcome: str


def export_stores(stores: Stores, file: Path) -> dict[str, int]:
    """Write all that the stores have into a new tar file, and return the numbers by kind.

    A server may go on: each entry is as it was at one moment. Damaged entries are left out. Raises
    `FolderNotEmptyError` where there is such a file.
    """
    if file.exists():
        raise FolderNotEmptyError(f"{file} is there already: name another file, or remove it first")
    partial = file.with_name(f".{file.name}.partial")
    counts = {"adapter": 0, "name": 0, "calibration": 0}
    try:
        with refusal_is_an_error(f"the export {file}"), tarfile.open(partial, "w") as tar:
            _add(tar, STORE, json.dumps({"format_version": FORMAT_VERSION}).encode())
            for adapter in _adapters(stores):
                counts["adapter"] += 1
                with tempfile.TemporaryDirectory() as folder:
                    _write_adapter(Path(folder), adapter)
                    for path in sorted(Path(folder).iterdir()):
                        _add(tar, f"{RECORDS}/{adapter.manifest.id}/{path.name}", path.read_bytes())
            for kind, root, journals in _journals(stores):
                keys = journals.keys()
                for key in keys:
                    records = journals.read(key)
                    if records is not None:
                        counts[kind] += 1
                        _add(tar, f"{root}/{key}/{JOURNAL_FILE}", b"".join(map(encoded, records)))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return counts


def import_stores(stores: Stores, file: Path, check_calibration: Check) -> list[Moved]:
    """Add the entries of a tar file to the stores, and say what became of each.

    The whole file is checked first: nothing is added of a file with one damaged entry. An entry
    that is there with another content stays as it is. A journal that goes on behind the records of
    the file is the same, but newer. `check_calibration` is as in `Journals.verify`. Raises
    `CorruptArtifactError` and `UnsupportedFormatError`.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with refusal_is_an_error(f"the import of {file}"):
            _unpack(file, root)
        for kind in (RECORDS, NAMES, CALIBRATIONS):
            (root / kind).mkdir(exist_ok=True)
        ids = sorted(path.name for path in (root / RECORDS).iterdir())
        for id in ids:
            read_folder(root / RECORDS / id)
        names = Journals(root / NAMES, NAME, "name")
        calibrations = GateJournals(root / CALIBRATIONS)
        for journals, check in ((names, NameHistory.of), (calibrations, check_calibration)):
            _, findings = journals.verify(check)
            for finding in findings:
                raise CorruptArtifactError(f"{file} is damaged: {finding.reason}")
        moved = [Moved("adapter", id, _import_adapter(stores, root / RECORDS / id)) for id in ids]
        for (kind, _, into), source in zip(_journals(stores), (names, calibrations), strict=True):
            keys = source.keys()
            moved += [Moved(kind, key, _import_journal(into, key, source.read(key) or [])) for key in keys]
    return moved


def _journals(stores: Stores) -> Sequence[tuple[str, str, RecordJournals]]:
    return (
        ("name", NAMES, stores.names.journals),
        ("calibration", CALIBRATIONS, stores.calibrations),
    )


def _adapters(stores: Stores) -> Iterator[StoredAdapter]:
    after = None
    while page := stores.adapters.list(after, _PAGE):
        for manifest in page:
            adapter = stores.adapters.get(manifest.id)
            if adapter is not None:  # else it was deleted meanwhile
                yield adapter
        after = page[-1].id


def _write_adapter(folder: Path, adapter: StoredAdapter) -> None:
    write_folder(folder, adapter.posterior, finite_text(adapter.manifest.to_json()))
    if adapter.diagnosis is not None:
        write_diagnosis(folder, adapter.diagnosis)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _unpack(file: Path, root: Path) -> None:
    """Write the members of the file below `root`; only those that an export has.

    Every path is made of a name that `_MEMBER` describes, which has no part of points, and never
    with what the tar file says of links, owners or rights.
    """
    seen = set[str]()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                whole = member.isreg() and not member.issparse()  # a sparse one may be of any size
                if not whole or not _MEMBER.fullmatch(member.name) or member.name in seen:
                    raise CorruptArtifactError(f"{file} is no export: it has {member.name[:200]!r}")
                seen.add(member.name)
                content = tar.extractfile(member)
                data = content.read() if content else b""
                path = root / member.name
                if len(data) != member.size or (path.name == JOURNAL_FILE and not data.endswith(b"\n")):
                    raise CorruptArtifactError(f"{file} is cut off: {member.name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        version = finite_json((root / STORE).read_text(encoding="utf-8"))["format_version"]
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{file} is no export: {error}") from error
    except FileNotFoundError as error:
        if not file.exists():
            raise
        raise CorruptArtifactError(f"{file} is no export: it has no {STORE}") from error
    if version != FORMAT_VERSION:
        raise UnsupportedFormatError(f"{file} has format {version!r}; the one read here is {FORMAT_VERSION}")


def _import_adapter(stores: Stores, folder: Path) -> str:
    given = read_folder(folder)
    id = given.manifest.id
    there = stores.adapters.get(id)
    if there is None and stores.adapters.has(id):
        return "conflict"  # in a format that this version does not read
    if there is None:
        stores.adapters.put(given)
        there = stores.adapters.get(id)
        outcome = "added"
    else:
        outcome = "already"
    if there is None or not _equal(there, given):  # the second: another process was faster
        return "conflict"
    if given.diagnosis is not None and there.diagnosis is None:
        stores.adapters.put_diagnosis(id, given.diagnosis)
    return outcome


def _equal(one: StoredAdapter, other: StoredAdapter) -> bool:
    a, b = one.posterior.to_tensors(), other.posterior.to_tensors()
    return (
        one.manifest == other.manifest
        and a.keys() == b.keys()
        and all(torch.equal(a[name], b[name]) for name in a)
    )


def _import_journal(into: RecordJournals, key: str, records: Sequence[Record]) -> str:
    loaded = into.load(key)
    if loaded is None:
        try:
            into.begin(key, records, ABSENT)
        except JournalChangedError:  # of a version that this one does not read, or by another process
            return "conflict"
        return "added"
    return "already" if list(loaded.records[: len(records)]) == list(records) else "conflict"
