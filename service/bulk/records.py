"""Records of files and batches, as they are kept on disk. Times are seconds since 1970."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

from service.principals.records import Limits, Principal, Scope

INPUT, OUTPUT = "batch", "batch_output"
"""Purposes of files: rows to answer, and answers to rows."""


class Status(StrEnum):
    """Status of a batch, in OpenAI's words."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        """Return whether the batch will not change any more."""
        return self in {Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED}


@dataclass(frozen=True)
class FileRecord:
    """A file of `bytes` bytes, which belongs to `tenant`. It expires at `expires_at`."""

    id: str
    tenant: str
    purpose: str
    filename: str
    bytes: int
    created_at: float
    expires_at: float


@dataclass(frozen=True)
class LineError:
    """Why a line of an input file, or without `line` the whole file, cannot be answered."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a batch is: all before is in its files, and nothing behind.

    `rows` are done, `completed` of them with an answer. `offset` and `line` are the bytes and the
    lines of the input file that were read for them.
    """

    rows: int = 0
    completed: int = 0
    offset: int = 0
    line: int = 0
    output_bytes: int = 0
    error_bytes: int = 0

    @property
    def failed(self) -> int:
        """Return the number of rows that were refused."""
        return self.rows - self.completed


@dataclass(frozen=True)
class BatchRecord:
    """A batch, which belongs to `tenant`, and whose rows may do what `scopes` and `limits` say.
    `key_id` is the public id of the key that began it; None where the server had no keys.

    `output_file_id` and `error_file_id` are chosen when it is made; the files are there while it
    runs, and afterwards if they have a line. `times` has the time of each status. `progress` is
    that of an ended batch; while it runs, the batch has a file for it.
    """

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    output_file_id: str
    error_file_id: str
    completion_window: str
    created_at: float
    expires_at: float
    status: Status = Status.VALIDATING
    times: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    total: int = 0
    errors: Sequence[LineError] = ()
    progress: Progress = Progress()
    output_seconds: float | None = None
    key_id: str | None = None
    scopes: Sequence[Scope] = tuple(Scope)
    limits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def owner(self) -> Principal:
        """Return who asks the rows, as that was when the batch was made."""
        return Principal(self.tenant, self.key_id, frozenset(self.scopes), limits=Limits(**self.limits))

    @property
    def ended_at(self) -> float:
        """Return when the batch got its last status."""
        return max(self.times.values(), default=self.created_at)

    def became(self, status: Status) -> Self:
        """Return the batch with another status from now on."""
        return replace(self, status=status, times={**self.times, status.value: time.time()})

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the record of plain values. Raises `KeyError`, `TypeError` or `ValueError`."""
        given = {name: value for name, value in values.items() if name in {f.name for f in fields(cls)}}
        given["status"] = Status(given["status"])
        given["errors"] = tuple(LineError(**error) for error in given["errors"])
        given["progress"] = Progress(**given["progress"])
        given["scopes"] = tuple(map(Scope, given["scopes"]))
        return cls(**given)
