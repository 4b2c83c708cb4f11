"""The audit log: who made, changed or deleted what. It has ids, and no text of a user."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from service.principals.records import Principal
from service.settings.values import SettingsError

log = logging.getLogger(__name__)
Action: TypeAlias = Literal["adapt", "delete", "expire", "name", "gate", "key"]


class AuditLog:
    """Appends a line of JSON for each change. Without a path it writes nothing.

    Lines are written at once, in one call each, so that several processes may share the file. They
    are not flushed to the disk one by one: a crash of the machine may lose the last seconds.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the file, for this user alone where it is new. Raises `SettingsError`."""
        self._file: int | None = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            except OSError as error:
                raise SettingsError(f"the audit log {path} cannot be written: {error.strerror}") from error

    def write(self, principal: Principal, action: Action, id: str, detail: str = "") -> None:
        """Note that `principal` did `action` to what has this id. A full disk is logged, not
        raised.
        """
        if self._file is None:
            return
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "tenant": principal.tenant,
            "key": principal.key_id,
            "action": action,
            "id": id,
            **({"detail": detail} if detail else {}),
        }
        try:
            os.write(self._file, json.dumps(record).encode() + b"\n")
        except OSError as error:
            log.error("the audit log cannot be written: %s", error.strerror)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
