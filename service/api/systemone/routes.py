"""The route `POST /v1/systemone`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from service.api.decision_answers import decide
from service.api.systemone import wire
from service.api.systemone.errors import CheckedRoute, ErrorResponse
from service.api.systemone.rendering import system_one_response
from service.api.systemone.requests import decision_body, fields_of_the_wire

router = APIRouter(prefix="/v1", route_class=CheckedRoute, tags=["TypeSafe System One"])


@router.post(
    "/systemone",
    response_model=wire.SystemOneResponse,
    responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
)
async def system_one(body: wire.SystemOneRequest, request: Request) -> Response:
    """Answer typed questions about one state, as TypeSafe's System One does.

    The base model answers without examples. An adapter, or cases in the request, answer by what
    they have learned.
    """
    with fields_of_the_wire(body.questions):
        asked = decision_body(body)
        decided = await decide(asked, request)
    # In a thread, since many questions times many choices make megabytes of JSON.
    text = await asyncio.to_thread(lambda: system_one_response(decided, asked, body).model_dump_json())
    return Response(text, media_type="application/json")
