"""Rows of a batch that are sent to `POST /v1/predict`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from service import schemas
from service.api.error_answers import NATIVE, ErrorForm
from service.api.native.predicting import validated
from service.api.native.rendering import predict_response
from service.api.native.requests import predict_request
from service.bulk.contract import RowRequest
from service.engine.answers import Answered
from service.engine.engine import Engine
from service.errors import InvalidRequestError, ServiceError
from service.principals.records import Principal


class PredictRows:
    """Answers rows as `POST /v1/predict` answers requests (`service.bulk.contract.Endpoint`).

    Rows that differ only in their inputs, which are texts or have no options of their own, are
    answered by one request.
    """

    form: ErrorForm = NATIVE

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, body: Mapping[str, Any]) -> RowRequest:
        """Return the request of a row. Raises `ServiceError`."""
        request = validated(schemas.PredictRequest, body)
        if request.stream:
            raise InvalidRequestError("a row of a batch is answered whole: leave stream out", "stream")
        rows = [schemas.InputRow(input=row) if isinstance(row, str) else row for row in request.inputs]
        key = None if any(row.options for row in rows) else key_without(body, "inputs")
        return RowRequest(request, key, len(rows), sum(len(row.input) for row in rows))

    async def answer(self, rows: Sequence[RowRequest], ids: Sequence[str], owner: Principal) -> Sequence[str]:
        """Return the answers as JSON texts, in order. Raises `ServiceError`."""
        requests: list[schemas.PredictRequest] = [row.request for row in rows]
        together = joined(requests)
        engine = await self._engine.of(owner)
        answered = await engine.predict(predict_request(together), background=True)
        # In a thread, since many inputs times many options make megabytes of JSON.
        return await asyncio.to_thread(
            lambda: [
                predict_response(part, together.seed, id).model_dump_json(exclude_none=True)
                for part, id in zip(parts_of(answered, requests), ids, strict=True)
            ]
        )

    def refusal(self, error: ServiceError, request_id: str) -> tuple[int, str]:
        """Return the status and the body by which the path answers an error."""
        return self.form.refusal(error, request_id)


def joined(requests: Sequence[schemas.PredictRequest]) -> schemas.PredictRequest:
    """Return one request with the inputs of all, which are equal but for these."""
    inputs = [row for request in requests for row in request.inputs]
    return requests[0].model_copy(update={"inputs": inputs})


def parts_of(answered: Answered, requests: Sequence[schemas.PredictRequest]) -> Iterator[Answered]:
    """Yield of the answer to `joined` the answer to each of the requests."""
    start = 0
    for request in requests:
        end = start + len(request.inputs)
        yield replace(answered, predictions=answered.predictions[start:end])
        start = end


def key_without(body: Mapping[str, Any], *fields: str) -> bytes:
    """Return what is equal for bodies that differ in `fields` only."""
    left = {name: value for name, value in body.items() if name not in fields}
    return hashlib.sha256(json.dumps(left, sort_keys=True).encode()).digest()
