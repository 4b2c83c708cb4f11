"""The route that diagnoses an adapter by the examples that it was made from."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service import schemas
from service.api.error_answers import documented_errors
from service.api.http import engine_of, request_id, unless_disconnected
from service.api.json_bodies import JsonRoute
from service.api.native.rendering import diagnose_response
from service.engine.requests import DiagnoseRequest

router = APIRouter(prefix="/v1", route_class=JsonRoute, tags=["adapt and predict"])


@router.post(
    "/adapters/{adapter_id}/diagnose",
    response_model_exclude_none=True,
    responses=documented_errors(400, 404, 413, 415, 422, 429, 500, 503, 504, 507),
)
async def diagnose_adapter(
    adapter_id: str, request: Request, body: schemas.DiagnoseRequest | None = None
) -> schemas.DiagnoseResponse:
    """Estimate how good an adapter is, by adapting to a part of its support and answering the rest.

    The body may be left out. The result is stored with the adapter, and answers equal requests;
    `GET /v1/adapters/{adapter_id}` shows it.
    """
    given = body or schemas.DiagnoseRequest()
    work = engine_of(request).diagnose(DiagnoseRequest(adapter_id, given.folds, given.samples))
    return diagnose_response(await unless_disconnected(request, work), request_id(request))
