"""The routes of OpenAI's surface: models, chats and completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request, Response

from model_store.adapters.names import NAME
from service import schemas
from service.api.http import engine_of
from service.api.json_bodies import JsonRoute
from service.api.native import predicting
from service.api.openai import models, rendering, requests, wire
from service.api.openai_errors import DOCUMENTED
from service.api.server_sent_events import EVENT_SCHEMA
from service.engine.adapter_records import check_adapter, served_of

_STREAM = {"text/event-stream": {"schema": EVENT_SCHEMA}}

B = TypeVar("B", wire.ChatCompletionRequest, wire.CompletionRequest)

router = APIRouter(prefix="/v1", route_class=JsonRoute, tags=["OpenAI"])


@router.get("/models", responses=DOCUMENTED)
async def list_models(
    request: Request,
    after: Annotated[str | None, Query(description="`last_id` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=0, le=1000, description="Most adapters and names on the page.")] = 100,
) -> schemas.ModelList:
    """List what a request can name as `model`: the base model, its stored adapters, then names of
    them.
    """
    engine = engine_of(request)
    served = engine.served
    last = after
    cards = [models.base_card(served, request.app.state.started)] if after is None else []
    has_more = False
    if after is None or not NAME.fullmatch(after):
        manifests, has_more = await engine.adapters(after, limit)
        cards += [models.adapter_card(m, served) for m in manifests if served_of(m, served)]
        after, last, limit = None, manifests[-1].id if manifests else after, limit - len(manifests)
    if not has_more:
        named = await engine.names.page(after, limit)
        for history, version in zip(named.histories, named.versions, strict=True):
            manifest, last = named.manifests.get(version.adapter_id), history.name
            if manifest and served_of(manifest, served) and last != served.base.id:
                cards.append(models.name_card(last, manifest, served))
        has_more = named.has_more
    summaries = list(map(models.summary, cards))
    return schemas.ModelList(data=cards, models=summaries, has_more=has_more, last_id=last)


@router.get("/models/{model_id:path}", responses=DOCUMENTED)
async def retrieve_model(model_id: str, request: Request) -> schemas.ModelCard:
    """Show the base model, one adapter, a name, or one version of a name."""
    engine = engine_of(request)
    served = engine.served
    adapter_id, _ = await engine.resolve_model(model_id)
    if adapter_id is None:
        return models.base_card(served, request.app.state.started)
    with predicting.renamed_fields(requests.field_name):
        manifest = (await engine.adapter(adapter_id)).manifest
        check_adapter(manifest, served)
    card = models.adapter_card if adapter_id == model_id else partial(models.name_card, model_id)
    return card(manifest, served)


@router.post(
    "/chat/completions",
    response_model=wire.ChatCompletion,
    responses={200: {"content": _STREAM}, **DOCUMENTED},
)
async def create_chat_completion(body: wire.ChatCompletionRequest, request: Request) -> Response:
    """Answer the message with the adapter that `model` names, or with one made from
    `abmll.support`.
    """
    inputs = "messages[0].content"
    return await _answer(body, request, inputs, rendering.chat_completion, rendering.chat_chunks)


@router.post(
    "/completions",
    response_model=wire.Completion,
    responses={200: {"content": _STREAM}, **DOCUMENTED},
)
async def create_completion(body: wire.CompletionRequest, request: Request) -> Response:
    """Answer texts with the adapter that `model` names, or with one made from `abmll.support`."""
    inputs = r"prompt\1"
    return await _answer(body, request, inputs, rendering.completion, rendering.completion_chunks)


async def _answer(
    body: B,
    request: Request,
    inputs: str,
    whole: Callable[[rendering.Answers, B], schemas.WireModel],
    chunks: Callable[[rendering.Answers, B], Iterable[schemas.WireModel]],
) -> Response:
    """Predict, and answer as one object or as events.

    `inputs` is the template by which errors name an input.
    """
    limit = request.app.state.settings.max_new_tokens
    native = requests.native_request(body, engine_of(request).served.base.id, limit)
    with predicting.renamed_fields(partial(requests.field_name, inputs=inputs)):
        done = await predicting.predict(native, request)

    def render() -> Response:
        answer = predicting.answer_of(done, native, request)
        answers = rendering.answers_of(done, answer, native, body, int(time.time()))
        if not body.stream:
            return Response(rendering.dump(whole(answers, body)), media_type="application/json")
        # A text is known only after all samples are averaged, so all events exist at once.
        return Response(rendering.events(chunks(answers, body)), media_type="text/event-stream")

    return await asyncio.to_thread(render)
