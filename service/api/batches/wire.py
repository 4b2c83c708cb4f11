"""The wire of OpenAI's Files and Batches. Fields of this server alone are below `abmll`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator

from service.bulk.records import Status
from service.schemas import WireModel

SHORTEST_SECONDS, LONGEST_SECONDS = 3600, 2_592_000
"""Bounds of how long a file may be stored, as OpenAI has them."""
MAX_WINDOW_HOURS = 720

_CREATE_EXAMPLE: dict[str, Any] = {
    "input_file_id": "file-0123456789abcdef0123456789abcdef",
    "endpoint": "/v1/predict",
    "completion_window": "24h",
}
_Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Value = Annotated[str, StringConstraints(max_length=512)]

# ---- files ---------------------------------------------------------------------------------------


class File(WireModel):
    """A file of rows, or of answers to rows."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix seconds.")
    expires_at: int = Field(description="Unix seconds.")
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["uploaded", "processed"]
    status_details: None = None


class FileList(WireModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(WireModel):
    """A file that is gone, on the disk too."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


# ---- batches -------------------------------------------------------------------------------------


class ExpiresAfter(WireModel):
    """How long a file is stored."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_SECONDS, le=LONGEST_SECONDS)


class CreateBatchRequest(WireModel):
    """Send every row of a file to a path of this server."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CREATE_EXAMPLE]})

    input_file_id: str = Field(description="Id of a file with the purpose `batch`.")
    endpoint: str = Field(
        description="Path of all rows: `/v1/predict`, `/v1/decisions` or `/v1/chat/completions`."
    )
    completion_window: str = Field(
        default="24h",
        description="Hours until rows that were not answered are given up, such as `24h`; at most `720h`.",
    )
    metadata: dict[_Key, _Value] | None = Field(
        default=None, max_length=16, description="Texts by name, which come back with the batch."
    )
    output_expires_after: ExpiresAfter | None = Field(
        default=None, description="How long the files of answers are stored; by default `file_ttl_seconds`."
    )

    @field_validator("completion_window")
    @classmethod
    def _window(cls, window: str) -> str:
        if not re.fullmatch("[1-9][0-9]{0,2}h", window) or int(window[:-1]) > MAX_WINDOW_HOURS:
            raise ValueError(f"the window is a number of hours from 1h to {MAX_WINDOW_HOURS}h, such as 24h")
        return window


class BatchError(WireModel):
    """Why a batch could not begin."""

    code: str
    message: str
    param: str | None
    line: int | None = Field(description="Number of the line in the input file, from 1.")


class BatchErrors(WireModel):
    """The first errors of the input file."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(WireModel):
    """Rows of a batch; `total` is 0 until they were counted."""

    total: int
    completed: int
    failed: int


class BatchDetails(WireModel):
    """What OpenAI's batches have no place for."""

    output_file_id: str = Field(
        description="Id of the file of answers, readable from the first answer on, while the batch runs."
    )
    error_file_id: str = Field(description="Id of the file of rows that were refused, from the first on.")
    rows_per_second: float | None = Field(description="Since this server began to work on it.")
    seconds_left: float | None = Field(description="Until the last row, at this rate.")
    problem: str | None = Field(description="Why it waits, such as a full disk; it goes on by itself.")


class Batch(WireModel):
    """A batch as it is now. Times are Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = Field(description="File of answers, once it has ended with some.")
    error_file_id: str | None = Field(description="File of refused rows, once it has ended with some.")
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    abmll: BatchDetails


class BatchList(WireModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
