"""Rows of a batch that are sent to `POST /v1/decisions`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.api.decision_requests import DecisionBody, placed_errors
from service.api.decisions import wire
from service.api.decisions.rendering import decision
from service.api.decisions.requests import decision_body
from service.api.error_answers import ErrorForm
from service.api.native.predicting import validated
from service.api.native.rows import key_without
from service.api.openai_errors import error_shape
from service.bulk.contract import RowRequest
from service.engine.engine import Engine
from service.errors import ServiceError
from service.principals.records import Principal


class DecisionRows:
    """Answers rows as `POST /v1/decisions` answers requests (`service.bulk.contract.Endpoint`).

    Rows that differ only in their inputs are answered by one request. `aliases` are other names of
    the base model.
    """

    form = ErrorForm(error_shape)

    def __init__(self, engine: Engine, aliases: Sequence[str]) -> None:
        self._engine, self._aliases = engine, aliases

    def read(self, body: Mapping[str, Any]) -> RowRequest:
        """Return the request of a row. Raises `ServiceError`."""
        request = validated(wire.DecisionRequest, body)
        asked = decision_body(request)
        chars = len(request.questions) * len(asked.inputs[0])
        return RowRequest((request, asked), key_without(body, "input"), len(request.questions), chars)

    async def answer(self, rows: Sequence[RowRequest], ids: Sequence[str], owner: Principal) -> Sequence[str]:
        """Return the answers as JSON texts, in order. Raises `ServiceError`."""
        pairs: list[tuple[wire.DecisionRequest, DecisionBody]] = [row.request for row in rows]
        together = replace(pairs[0][1], inputs=tuple(asked.inputs[0] for _, asked in pairs))
        engine = await self._engine.of(owner)
        with placed_errors(together):
            request = together.request(engine.served.base.id, *self._aliases)
            decided = await engine.decide(request, background=True)
        # In a thread, since many questions times many choices make megabytes of JSON.
        return await asyncio.to_thread(
            lambda: [
                decision(decided.about(number), asked, body).model_dump_json()
                for number, (body, asked) in enumerate(pairs)
            ]
        )

    def refusal(self, error: ServiceError, request_id: str) -> tuple[int, str]:
        """Return the status and the body by which the path answers an error."""
        return self.form.refusal(error, request_id)
