"""The routes of OpenAI's Files and Batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from service.api.batches import wire
from service.api.batches.rendering import batch_object, file_object
from service.api.batches.uploads import receive
from service.api.http import principal_of, settings_of
from service.api.json_bodies import JsonRoute
from service.api.native.predicting import validated
from service.api.openai_errors import DOCUMENTED
from service.bulk.manager import BulkWork
from service.bulk.records import INPUT
from service.errors import InvalidRequestError, NotFoundError

FILES = "/v1/files"
"""The path whose body is a file."""
router = APIRouter(prefix="/v1", route_class=JsonRoute, tags=["OpenAI Files and Batches"])
T = TypeVar("T", wire.File, wire.Batch)

_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "Rows in JSON Lines: `custom_id`, `method`, `url`, `body`.",
                        },
                        "purpose": {"type": "string", "enum": [INPUT]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": wire.SHORTEST_SECONDS,
                            "maximum": wire.LONGEST_SECONDS,
                        },
                    },
                }
            }
        },
    }
}
_JSON_LINES: dict[str, Any] = {"content": {"application/jsonl": {"schema": {"type": "string"}}}}
_After = Annotated[str | None, Query(description="Id after which the page begins.")]


def bulk_of(request: Request) -> BulkWork:
    """Return the bulk work of the application that serves the request."""
    bulk: BulkWork = request.app.state.bulk
    return bulk


def tenant_of(request: Request) -> str:
    """Return the tenant whose files and batches the request may see."""
    return principal_of(request).tenant


# ---- files


@router.post("/files", responses=DOCUMENTED, openapi_extra=_UPLOAD_BODY)
async def create_file(request: Request) -> wire.File:
    """Upload a file of rows for a batch. It may be as large as `max_file_bytes`."""
    files = bulk_of(request).files
    tenant = tenant_of(request)
    received = await receive(request, lambda filename: files.begin(filename, tenant))
    try:
        fields = dict(received.fields)
        if (purpose := fields.pop("purpose", None)) != INPUT:
            raise InvalidRequestError(f"the purpose is {INPUT!r}, not {purpose!r:.80}", "purpose")
        lifetime = _lifetime(fields) or settings_of(request).file_ttl_seconds
        if fields:
            name = next(iter(fields))
            raise InvalidRequestError(f"the form has no field {name!r:.80}", f"{name:.80}")
        return file_object(await asyncio.to_thread(files.finish, received.upload, purpose, lifetime))
    finally:
        received.upload.discard()


def _lifetime(fields: dict[str, str]) -> float | None:
    """Take `expires_after` out of the fields of a form, and return its seconds."""
    anchor, seconds = fields.pop("expires_after[anchor]", None), fields.pop("expires_after[seconds]", None)
    if anchor is None and seconds is None:
        return None
    whole = int(seconds) if seconds and seconds.isdecimal() and seconds.isascii() else seconds
    return validated(wire.ExpiresAfter, {"anchor": anchor, "seconds": whole}).seconds


@router.get("/files", responses=DOCUMENTED)
async def list_files(
    request: Request,
    purpose: Annotated[str | None, Query(description="Only files with this purpose.")] = None,
    after: _After = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Most files of the page.")] = 10_000,
    order: Annotated[Literal["asc", "desc"], Query(description="Order by `created_at`.")] = "desc",
) -> wire.FileList:
    """List files, by default the latest first."""
    records = bulk_of(request).files.owned(tenant_of(request), purpose)
    page, has_more = _page(
        list(map(file_object, records if order == "desc" else records[::-1])), after, limit
    )
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    return wire.FileList(data=page, first_id=first, last_id=last, has_more=has_more)


@router.get("/files/{file_id}", responses=DOCUMENTED)
async def retrieve_file(file_id: str, request: Request) -> wire.File:
    """Show a file."""
    return file_object(bulk_of(request).files.get(file_id, tenant_of(request)))


@router.get(
    "/files/{file_id}/content", response_class=StreamingResponse, responses={200: _JSON_LINES, **DOCUMENTED}
)
async def file_content(file_id: str, request: Request) -> StreamingResponse:
    """Return the bytes of a file; of a batch that runs, whole lines that are on the disk."""
    files = bulk_of(request).files
    record = files.get(file_id, tenant_of(request))
    content = await asyncio.to_thread(files.content, record)
    headers = {"content-length": str(record.bytes)}
    return StreamingResponse(content, media_type="application/jsonl", headers=headers)


@router.delete("/files/{file_id}", responses=DOCUMENTED)
async def delete_file(file_id: str, request: Request) -> wire.DeletedFile:
    """Delete a file, on the disk too, if no batch that has not ended uses it."""
    await asyncio.to_thread(bulk_of(request).files.delete, file_id, tenant_of(request))
    return wire.DeletedFile(id=file_id)


# ---- batches


@router.post("/batches", responses=DOCUMENTED)
async def create_batch(body: wire.CreateBatchRequest, request: Request) -> wire.Batch:
    """Begin a batch: every row of the file is answered, in capacity that other requests leave."""
    view = await bulk_of(request).create(
        owner=principal_of(request),
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        window_seconds=3600.0 * int(body.completion_window[:-1]),
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_seconds=body.output_expires_after.seconds if body.output_expires_after else None,
    )
    return batch_object(view)


@router.get("/batches", responses=DOCUMENTED)
async def list_batches(
    request: Request,
    after: _After = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most batches of the page.")] = 20,
) -> wire.BatchList:
    """List batches, the latest first."""
    views = bulk_of(request).owned(tenant_of(request))
    page, has_more = _page(list(map(batch_object, views)), after, limit)
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    return wire.BatchList(data=page, first_id=first, last_id=last, has_more=has_more)


@router.get("/batches/{batch_id}", responses=DOCUMENTED)
async def retrieve_batch(batch_id: str, request: Request) -> wire.Batch:
    """Show a batch as it is now."""
    return batch_object(bulk_of(request).get(batch_id, tenant_of(request)))


@router.post("/batches/{batch_id}/cancel", responses=DOCUMENTED)
async def cancel_batch(batch_id: str, request: Request) -> wire.Batch:
    """Stop a batch; what it has answered stays readable."""
    return batch_object(await bulk_of(request).cancel(batch_id, tenant_of(request)))


def _page(objects: Sequence[T], after: str | None, limit: int) -> tuple[list[T], bool]:
    """Return at most `limit` objects behind that with the id `after`, and whether there are more."""
    start = 0
    if after is not None:
        start = next((i + 1 for i, found in enumerate(objects) if found.id == after), 0)
        if not start:
            raise NotFoundError(f"there is nothing with the id {after!r:.100} to go on after", "after")
    return list(objects[start : start + limit]), len(objects) > start + limit
