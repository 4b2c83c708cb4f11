"""Predicting, for every surface: from the native request to the native answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from service import schemas
from service.api.http import engine_of, request_id, unless_disconnected
from service.api.native.rendering import predict_response
from service.api.native.requests import predict_request
from service.engine.answers import Answered
from service.errors import ServiceError, from_validation

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=schemas.WireModel)


async def predict(body: schemas.PredictRequest, request: Request) -> Answered:
    """Return the engine's answer to `body`; stop when the client leaves. Raises `ServiceError`."""
    work = engine_of(request).predict(predict_request(body))
    return await unless_disconnected(request, work)


def answer_of(answered: Answered, body: schemas.PredictRequest, request: Request) -> schemas.PredictResponse:
    """Return the native answer to `body`. Many inputs take long, so call it in a thread."""
    return predict_response(answered, body.seed, request_id(request))


async def predict_and_render(
    body: schemas.PredictRequest, request: Request, render: Callable[[schemas.PredictResponse], T]
) -> T:
    """Return the native answer to `body` as `render` shows it. Raises as `predict`."""
    answered = await predict(body, request)
    # In a thread, since many inputs times many options make megabytes of JSON.
    return await asyncio.to_thread(lambda: render(answer_of(answered, body, request)))


def native_request(fields: Mapping[str, Any]) -> schemas.PredictRequest:
    """Return the native request of these fields. Raises `InvalidRequestError`."""
    return validated(schemas.PredictRequest, fields)


def validated(request: type[RequestT], fields: Mapping[str, Any]) -> RequestT:
    """Return the request of these fields. Raises `InvalidRequestError`."""
    try:
        return request.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors()) from error


@contextmanager
def renamed_fields(name: Callable[[str], str]) -> Iterator[None]:
    """Translate the wrong field of errors from inside by `name`, which takes the native field."""
    try:
        yield
    except ServiceError as error:
        if error.param is None:
            raise
        raise error.at(name(error.param)) from error
