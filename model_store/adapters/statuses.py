"""Statuses of long adaptations on disk, so that a server can say what became of them after a
restart.

    <root>/<adapter id>.json    its status, its times, and how it ended; no text of its support

A file is written whole. One that cannot be read is removed: the adapter is then unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from model_store.adapters.manifest import ADAPTER_ID
from model_store.storage import finite_json, finite_text, refusal_is_an_error, write_durably

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredStatus:
    """Status of one long adaptation, with its times (UTC, ISO 8601).

    `code`, `message` and `param` are of the error that it ended with; None where it goes on.
    """

    adapter_id: str
    status: str
    created: str
    steps: int
    finished: str | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None


class StatusStore:
    """Owns the files below `root`. One thread at a time writes the status of an adapter."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self) -> Iterator[StoredStatus]:
        """Yield every status."""
        for path in sorted(self._root.glob("*.json")):
            try:
                values = finite_json(path.read_text("utf-8"))
                known = {field.name for field in fields(StoredStatus)}
                stored = StoredStatus(**{name: value for name, value in values.items() if name in known})
            except (OSError, ValueError, TypeError, AttributeError) as error:
                _log.warning("the status %s cannot be read and is removed: %r", path.name, error)
                path.unlink(missing_ok=True)
            else:
                yield stored

    def put(self, status: StoredStatus) -> None:
        """Write a status in place of the one before. Raises `StoreError`, and `OSError`."""
        with refusal_is_an_error("the status of an adaptation"):
            self._root.mkdir(parents=True, exist_ok=True)
            write_durably(self._path(status.adapter_id), finite_text(asdict(status)))

    def delete(self, adapter_id: str) -> None:
        """Remove a status, if it is there. Raises `OSError`."""
        self._path(adapter_id).unlink(missing_ok=True)

    def _path(self, adapter_id: str) -> Path:
        if not ADAPTER_ID.fullmatch(adapter_id):
            raise ValueError(f"not an adapter id: {adapter_id!r}")
        return self._root / f"{adapter_id}.json"
