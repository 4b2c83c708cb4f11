"""The route `POST /v1/decisions`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from service.api.decision_answers import decide
from service.api.decisions import wire
from service.api.decisions.rendering import decision
from service.api.decisions.requests import decision_body
from service.api.json_bodies import JsonRoute
from service.api.openai_errors import DOCUMENTED

router = APIRouter(prefix="/v1", route_class=JsonRoute, tags=["OpenAI Decisions"])


@router.post(
    "/decisions",
    response_model=wire.Decision,
    responses=DOCUMENTED,
)
async def create_decision(body: wire.DecisionRequest, request: Request) -> Response:
    """Answer typed questions about one input, as OpenAI's Decisions do.

    The base model answers without examples. An adapter, or cases in the request, answer by what
    they have learned.
    """
    asked = decision_body(body)
    decided = await decide(asked, request)
    # In a thread, since many questions times many choices make megabytes of JSON.
    text = await asyncio.to_thread(lambda: decision(decided, asked, body).model_dump_json())
    return Response(text, media_type="application/json")
