"""From records of files and batches to OpenAI's objects."""

from __future__ import annotations

from service.api.batches import wire
from service.bulk.manager import BatchView
from service.bulk.records import INPUT, BatchRecord, FileRecord, Status


def file_object(record: FileRecord) -> wire.File:
    """Render a file."""
    return wire.File(
        id=record.id,
        bytes=record.bytes,
        created_at=int(record.created_at),
        expires_at=int(record.expires_at),
        filename=record.filename,
        purpose="batch" if record.purpose == INPUT else "batch_output",
        status="uploaded" if record.purpose == INPUT else "processed",
    )


def batch_object(view: BatchView) -> wire.Batch:
    """Render a batch."""
    record, progress = view.record, view.progress
    ended = record.status.ended
    errors = [
        wire.BatchError(code=error.code, message=error.message, param=error.param, line=error.line)
        for error in record.errors
    ]
    return wire.Batch(
        id=record.id,
        endpoint=record.endpoint,
        errors=wire.BatchErrors(data=errors) if errors else None,
        input_file_id=record.input_file_id,
        completion_window=record.completion_window,
        status=record.status,
        output_file_id=record.output_file_id if ended and progress.output_bytes else None,
        error_file_id=record.error_file_id if ended and progress.error_bytes else None,
        created_at=int(record.created_at),
        expires_at=int(record.expires_at),
        in_progress_at=_time(record, Status.IN_PROGRESS),
        finalizing_at=_time(record, Status.FINALIZING),
        completed_at=_time(record, Status.COMPLETED),
        failed_at=_time(record, Status.FAILED),
        expired_at=_time(record, Status.EXPIRED),
        cancelling_at=_time(record, Status.CANCELLING),
        cancelled_at=_time(record, Status.CANCELLED),
        request_counts=wire.RequestCounts(
            total=record.total, completed=progress.completed, failed=progress.failed
        ),
        metadata=None if record.metadata is None else dict(record.metadata),
        abmll=wire.BatchDetails(
            output_file_id=record.output_file_id,
            error_file_id=record.error_file_id,
            rows_per_second=view.rows_per_second,
            seconds_left=view.seconds_left,
            problem=view.problem,
        ),
    )


def _time(record: BatchRecord, status: Status) -> int | None:
    return int(record.times[status]) if status in record.times else None
