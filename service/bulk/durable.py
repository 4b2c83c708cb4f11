"""What files and batches do to the disk: flush, and errors that say what was not stored."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import StoreError
from service.errors import store_failure

log = logging.getLogger(__name__)


def flush(path: Path) -> None:
    """Put what was written to a file, or the names in a folder, on the disk. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn what the disk refuses into a `StoreFailedError` that says why `what` was not stored."""
    try:
        yield
    except (OSError, StoreError) as error:
        log.error("%s could not be stored: %s", what, error)
        raise store_failure(error, f"{what} could not be stored") from error
