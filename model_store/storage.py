"""Folders that are either complete or absent.

A folder is built beside its final place, flushed to the disk, and renamed. So a reader never sees a
half-written one, even if the writer was killed. A seal, which has the digests of the folder's
files, shows later damage.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError

from model_store.errors import (
    CorruptArtifactError,
    FolderNotEmptyError,
    NonFiniteError,
    StorageFullError,
    UnusableFolderError,
)
from model_store.progress import Report

SEAL_FILE = "seal.json"
DAMAGED = ".damaged"
"""The folder of a store to which entries that are not intact are moved."""
_STAGING = ".staging-"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNUSABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_log = logging.getLogger(__name__)


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files directly in `folder`; 0 where there is no such folder."""
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


@contextmanager
def refusal_is_an_error(what: str) -> Iterator[None]:
    """Turn the ways in which the system refuses to store or read `what` into errors that name it.

    Raises `StorageFullError` for a full disk, and `UnusableFolderError` for a folder without
    rights, on a read-only disk, or with a file in its place.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(f"the disk is full: {what} was not stored") from error
        if error.errno not in _UNUSABLE:
            raise
        raise _unusable(f"{error.filename}", what, error.errno) from error
    except SafetensorError as error:  # has the operating system's error as text only
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else 0
        if number in _FULL:
            raise StorageFullError(f"the disk is full: {what} was not stored") from error
        if number not in _UNUSABLE:
            raise
        raise _unusable("a file", what, number) from error


def _unusable(path: str, what: str, number: int) -> UnusableFolderError:
    return UnusableFolderError(
        f"cannot use {path} for {what}: {os.strerror(number)}; name another folder, or let this user write here"
    )


def require_empty(folder: Path) -> None:
    """Raise `FolderNotEmptyError` unless `folder` does not exist or is an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderNotEmptyError(f"{folder} exists and is not empty")


def require_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise `StorageFullError` unless the disk of `folder` has `needed_bytes` free.

    The folder exists.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        megabytes = f"{needed_bytes / 1e6:.0f} MB of disk but {free_bytes / 1e6:.0f} MB are free"
        raise StorageFullError(f"{what} needs {megabytes} in {folder}")


def write_private(path: Path, data: bytes) -> None:
    """Write a file of a secret durably, whole or not at all, for this user alone (mode 600)."""
    partial = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staged(target: Path, what: str) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` on success, else is removed.

    It is flushed to the disk first. Its files have the rights that the process gives new files
    (safetensors gives them to the user alone). A `target` that exists is replaced. Raises as
    `refusal_is_an_error`, naming `what`.
    """
    with refusal_is_an_error(what):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.parent / f"{_STAGING}{target.name}-{uuid.uuid4().hex}"
        staging.mkdir()
        rights = staging.stat().st_mode & 0o666  # what the process's umask leaves
        try:
            yield staging
            for path in [*staging.rglob("*"), staging]:
                if path.is_file() and not path.is_symlink():
                    path.chmod(rights)
                flush(path)
            remove(target)
            staging.rename(target)
            flush(target.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def write_durably(path: Path, text: str) -> None:
    """Write the file, whole or not at all, in place of what is there.

    It is on the disk when this returns. Only one writer at a time may call this: it overwrites what
    a writer that died has left.
    """
    partial = path.with_name(f"{_STAGING}{path.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        partial.replace(path)
        flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove(target: Path) -> bool:
    """Remove the folder at once (renamed, then emptied), and return whether there was one."""
    doomed = target.parent / f"{_STAGING}{target.name}-{uuid.uuid4().hex}"
    try:
        target.rename(doomed)
    except FileNotFoundError:
        return False
    flush(target.parent)
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def sweep(folder: Path, target_name: str = "") -> None:
    """Remove what writers that died left in `folder`, for one target or for all.

    Only the holder of the writers' lock may call this: nothing here can tell dead writers from
    living ones.
    """
    for leftover in folder.glob(f"{_STAGING}{target_name}*"):
        _log.info("removing a leftover of an interrupted write: %s", leftover.name)
        shutil.rmtree(leftover, ignore_errors=True)


def finite_json(text: str) -> Any:
    """Parse JSON. Raises `ValueError` for NaN and infinities, which JSON does not have."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def finite_text(values: Any) -> str:
    """Format plain values as JSON. Raises `NonFiniteError` for NaN and infinities."""
    try:
        return json.dumps(values, indent=1, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"a record has a number that is not finite: {error}") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def seal(folder: Path) -> None:
    """Record the digests of all files in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    (folder / SEAL_FILE).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def check_seal(folder: Path, *names: str) -> None:
    """Raise `CorruptArtifactError` unless the files match the folder's seal.

    With `names`, only these files are checked.
    """
    try:
        digests = json.loads((folder / SEAL_FILE).read_text(encoding="utf-8"))
        damaged = [name for name in names or digests if file_sha256(folder / name) != digests[name]]
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        raise CorruptArtifactError(f"{folder.name} is incomplete: {error}") from error
    if damaged:
        raise CorruptArtifactError(f"{folder.name} is damaged: {damaged[0]} does not match its digest")


def cached_folder(target: Path, build: Callable[[Path], None], what: str, report: Report) -> Path:
    """Return `target`, intact; `build` fills an empty folder where it is absent or damaged.

    Of several processes at once, one builds and the others wait. Reading takes no lock, so that a
    read-only cache works. Raises as `refusal_is_an_error`, and what `build` raises.
    """
    with refusal_is_an_error(what):
        if is_intact(target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f"{target.name}.lock"))
        with _acquire(lock, f"Waiting for another process to prepare {what}", report):
            if not is_intact(target):
                sweep(target.parent, target.name)
                with staged(target, what) as staging:
                    build(staging)
                    seal(staging)
    return target


def _acquire(lock: FileLock, waiting: str, report: Report) -> AcquireReturnProxy[FileLock]:
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        report(waiting, 0, 0)
        return lock.acquire()


def is_intact(folder: Path) -> bool:
    """Return whether a folder of `cached_folder` is there and matches its seal; damage is logged."""
    if not folder.exists():
        return False
    try:
        check_seal(folder)
    except CorruptArtifactError as error:
        _log.warning("building again: %s", error)
        return False
    return True


def flush(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
