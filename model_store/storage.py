"""Folders that are either complete or absent.

A folder is built beside its final place, sealed with the digests of its files, flushed to the disk and renamed.
So a reader never sees a half-written one, whatever killed the writer, and damage done later is found by the digests.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError

from model_store.errors import CorruptArtifactError, StorageFullError
from model_store.progress import Report

SEAL = "seal.json"
_STAGING = ".staging-"
_log = logging.getLogger(__name__)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def full_disk_is_an_error(what: str) -> Iterator[None]:
    """Turn the ways in which libraries report a full disk into `StorageFullError` naming `what`."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise StorageFullError(f"the disk is full: {what} was not stored") from error
    except SafetensorError as error:  # carries the operating system's error as text only
        if f"os error {errno.ENOSPC}" not in str(error):
            raise
        raise StorageFullError(f"the disk is full: {what} was not stored") from error


def require_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise `StorageFullError` unless the disk of `folder` (which exists) has `needed_bytes` free."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise StorageFullError(
            f"{what} needs {needed_bytes / 1e6:.0f} MB of disk but {free_bytes / 1e6:.0f} MB are free in {folder}"
        )


def check_seal(folder: Path) -> None:
    """Raise `CorruptArtifactError` unless `folder` is sealed and every sealed file has its digest."""
    try:
        digests = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        damaged = [name for name, digest in digests.items() if file_sha256(folder / name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(f"{folder.name} is incomplete: {error}") from error
    if damaged:
        raise CorruptArtifactError(f"{folder.name} is damaged: {damaged[0]} does not match its digest")


@contextmanager
def staged(target: Path, what: str) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it is sealed, flushed and becomes `target`.

    On any exception it is removed. Raises `StorageFullError` naming `what` when the disk fills up.
    """
    with full_disk_is_an_error(what):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.parent / f"{_STAGING}{target.name}-{uuid.uuid4().hex}"
        staging.mkdir()
        try:
            yield staging
            _seal(staging)
            staging.rename(target)
            _flush(target.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def sweep(folder: Path, target_name: str = "") -> int:
    """Remove what writers that died left in `folder` (of one target, or of all); returns how many there were.

    Only for the holder of the lock that the writers of these targets take.
    """
    leftovers = list(folder.glob(f"{_STAGING}{target_name}*"))
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)
    return len(leftovers)


def cached_folder(target: Path, build: Callable[[Path], None], what: str, report: Report) -> Path:
    """`target`, intact; built by `build(empty folder)` when it is absent or damaged.

    Of several processes at once one builds and the others wait for it. Reading takes no lock, so a read-only cache works.
    """
    if _is_intact(target):
        return target
    with full_disk_is_an_error(what):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f"{target.name}.lock"))
        with _acquire(lock, f"Waiting for another process to prepare {what}", report):
            if not _is_intact(target):
                shutil.rmtree(target, ignore_errors=True)
                sweep(target.parent, target.name)
                with staged(target, what) as staging:
                    build(staging)
    return target


def _acquire(lock: FileLock, waiting: str, report: Report) -> AcquireReturnProxy:
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        report(waiting, 0, 0)
        return lock.acquire()


def _is_intact(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        check_seal(folder)
    except CorruptArtifactError as error:
        _log.warning("building again: %s", error)
        return False
    return True


def _seal(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    (folder / SEAL).write_text(json.dumps(digests, indent=1), encoding="utf-8")
    for path in [*files, folder / SEAL, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
