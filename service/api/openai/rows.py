"""Rows of a batch that are sent to `POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from service.api.error_answers import ErrorForm
from service.api.native.predicting import renamed_fields, validated
from service.api.native.rendering import predict_response
from service.api.native.requests import predict_request
from service.api.native.rows import joined, key_without, parts_of
from service.api.openai import rendering, requests, wire
from service.api.openai_errors import error_shape
from service.bulk.contract import RowRequest
from service.engine.engine import Engine
from service.errors import InvalidRequestError, ServiceError
from service.principals.records import Principal


class ChatRows:
    """Answers rows as `POST /v1/chat/completions` does (`service.bulk.contract.Endpoint`).

    Rows that differ only in their messages are answered by one request.
    """

    form = ErrorForm(error_shape)

    def __init__(self, engine: Engine, max_new_tokens: int) -> None:
        self._engine, self._max_new_tokens = engine, max_new_tokens

    def read(self, body: Mapping[str, Any]) -> RowRequest:
        """Return the request of a row. Raises `ServiceError`."""
        request = validated(wire.ChatCompletionRequest, body)
        if request.stream:
            raise InvalidRequestError("a row of a batch is answered whole: leave stream out", "stream")
        return RowRequest(request, key_without(body, "messages"), 1, sum(map(len, request.inputs)))

    async def answer(self, rows: Sequence[RowRequest], ids: Sequence[str], owner: Principal) -> Sequence[str]:
        """Return the answers as JSON texts, in order. Raises `ServiceError`."""
        bodies: list[wire.ChatCompletionRequest] = [row.request for row in rows]
        base = self._engine.served.base.id
        natives = [requests.native_request(body, base, self._max_new_tokens) for body in bodies]
        with renamed_fields(partial(requests.field_name, inputs="messages[0].content")):
            engine = await self._engine.of(owner)
            answered = await engine.predict(predict_request(joined(natives)), background=True)

        def render() -> list[str]:
            texts = []
            for part, native, body, id in zip(parts_of(answered, natives), natives, bodies, ids, strict=True):
                answer = predict_response(part, native.seed, id)
                answers = rendering.answers_of(part, answer, native, body, int(time.time()))
                texts.append(rendering.dump(rendering.chat_completion(answers, body)))
            return texts

        return await asyncio.to_thread(render)

    def refusal(self, error: ServiceError, request_id: str) -> tuple[int, str]:
        """Return the status and the body by which the path answers an error."""
        return self.form.refusal(error, request_id)
