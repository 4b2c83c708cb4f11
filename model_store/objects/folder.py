"""Objects in a folder that several processes of one machine, or of one network disk, share.

    <root>/<key>      the object
    <root>/.lock      held by who changes or deletes an object that is there
    <root>/.staging-* objects that are being written

A tag is the file's number, time and size: a file is never written twice, only replaced.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from model_store.errors import StoreUnavailableError
from model_store.objects.contract import Listed, Object, check_key
from model_store.storage import flush, refusal_is_an_error

_STAGING = ".staging-"


class FolderObjects:
    """Objects below `root`, as `Objects`."""

    def __init__(self, root: Path, timeout_seconds: float) -> None:
        """Use `root`, creating it; wait for other processes `timeout_seconds` at most.

        Raises `UnusableFolderError`.
        """
        self._root, self._timeout_seconds = root, timeout_seconds
        self._mutex = threading.Lock()
        self._lock = FileLock(root / ".lock", thread_local=False)
        with refusal_is_an_error("the store"):
            root.mkdir(parents=True, exist_ok=True)

    @property
    def name(self) -> str:
        """Return the folder."""
        return str(self._root)

    def get(self, key: str) -> Object | None:
        """Return the object; None where there is none."""
        with refusal_is_an_error("the store"):
            try:
                with self._path(key).open("rb") as file:
                    return Object(file.read(), _tag(os.fstat(file.fileno())))
            except FileNotFoundError:
                return None

    def tag(self, key: str) -> str | None:
        """Return the object's tag; None where there is none."""
        with refusal_is_an_error("the store"):
            try:
                return _tag(self._path(key).stat())
            except FileNotFoundError:
                return None

    def put(self, key: str, data: bytes) -> None:
        """Write the object, whatever is there."""
        with self._written(key, data) as (new, path), self._changing():
            new.replace(path)

    def create(self, key: str, data: bytes) -> str | None:
        """Write the object where there is none; None where there is one."""
        with self._written(key, data) as (new, path):
            try:
                os.link(new, path)
            except FileExistsError:
                return None
            return _tag(new.stat())

    def replace(self, key: str, data: bytes, tag: str) -> str | None:
        """Write the object where it still has `tag`; None where it has not."""
        with self._written(key, data) as (new, path), self._changing():
            if self.tag(key) != tag:
                return None
            new.replace(path)
            return _tag(path.stat())

    def list(self, prefix: str, after: str | None = None) -> Iterator[Listed]:
        """Yield the objects below `prefix`, in the order of their keys."""
        folder = self._root / check_key(prefix.removesuffix("/"))
        with refusal_is_an_error("the store"):
            paths = [path for path in folder.rglob("*") if not path.name.startswith(".")]
        found = sorted((path.relative_to(self._root).as_posix(), path) for path in paths)
        for key, path in found:
            if after is None or key > after:
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if path.is_file():
                    modified = datetime.fromtimestamp(status.st_mtime, UTC)
                    yield Listed(key, _tag(status), status.st_size, modified)

    def delete(self, key: str) -> bool:
        """Delete the object, and return whether there was one."""
        path = self._path(key)
        with refusal_is_an_error("the store"), self._changing():
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            flush(path.parent)
            return True

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """Yield a file with `data` on the disk, and the path that it is for; flush what is done."""
        path = self._path(key)
        with refusal_is_an_error(f"the object {key}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = self._root / f"{_STAGING}{uuid.uuid4().hex}"
            try:
                new.write_bytes(data)
                flush(new)
                yield new, path
                flush(path.parent)
            finally:
                new.unlink(missing_ok=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._mutex:
            try:
                self._lock.acquire(timeout=self._timeout_seconds)
            except Timeout as error:
                raise StoreUnavailableError(
                    f"another process has held the lock of the store {self.name} for "
                    f"{self._timeout_seconds:g} s (setting store_timeout_seconds)"
                ) from error
            try:
                yield
            finally:
                self._lock.release()


def _tag(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
