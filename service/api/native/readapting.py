"""The route that makes an adapter again, with the global posterior that is served by default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from service import schemas
from service.api.error_answers import documented_errors
from service.api.http import engine_of, request_id, unless_disconnected
from service.api.json_bodies import JsonRoute

if TYPE_CHECKING:
    from service.engine.readapting import Readapted

router = APIRouter(prefix="/v1", route_class=JsonRoute, tags=["adapt and predict"])


@router.post(
    "/adapters/{adapter_id}/readapt",
    response_model_exclude_none=True,
    responses=documented_errors(400, 404, 413, 415, 422, 429, 500, 503, 504, 507),
)
async def readapt_adapter(
    adapter_id: str, request: Request, body: schemas.ReadaptRequest | None = None
) -> schemas.ReadaptResponse:
    """Make an adapter of the same examples with the default posterior, and move its names to it.

    The body may be left out. The old adapter stays, and so do the earlier versions of its names.
    Sent again, the same request goes on where it was interrupted.
    """
    given = body or schemas.ReadaptRequest()
    work = engine_of(request).readapt(adapter_id, dry_run=given.dry_run, move_names=given.move_names)
    return readapt_response(await unless_disconnected(request, work), request_id(request))


def readapt_response(done: Readapted, request_id: str) -> schemas.ReadaptResponse:
    """Render what became of an adapter."""
    price = done.price
    return schemas.ReadaptResponse(
        adapter_id=done.adapter_id,
        new_adapter_id=done.new_id,
        posterior=done.posterior_id,
        names=list(done.names),
        loses_calibration=done.loses_calibration,
        cache=done.cache.value if done.cache else None,
        made_already=price.made_already if price else None,
        adapt_seconds=price.price.adapt_seconds if price and price.price else None,
        refusal=price.refusal if price else None,
        request_id=request_id,
    )
