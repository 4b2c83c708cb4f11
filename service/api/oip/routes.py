"""The routes below `/v2`."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Any

from fastapi import APIRouter, Request, Response

from model_store.adapters.names import NAME
from service import schemas
from service.api.http import engine_of
from service.api.native.predicting import predict_and_render, renamed_fields
from service.api.oip import wire
from service.api.oip.binary import JSON_LENGTH, TensorRoute
from service.api.oip.models import Model, metadata
from service.api.oip.rendering import infer_response
from service.api.oip.requests import field_name, options_of, predict_request, wanted_outputs
from service.engine.adapter_records import check_adapter
from service.errors import UnknownModelError

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": wire.InferError},
    "5XX": {"model": wire.InferError},
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": wire.InferResponse,
        "content": {"application/octet-stream": {}},
        "description": "With binary outputs, bytes that begin with the JSON object, whose length is in "
        f"the header `{JSON_LENGTH}`.",
    }
}
router = APIRouter(prefix="/v2", route_class=TensorRoute, tags=["Open Inference Protocol"], responses=_ERRORS)


@router.get("")
async def server_metadata() -> wire.ServerMetadata:
    """Name the server and its extensions."""
    return wire.ServerMetadata(version=version_of("abmll-serve"), extensions=["binary_tensor_data"])


@router.get("/health/live")
async def server_live() -> wire.ServerLive:
    """Answer 200 while the process runs."""
    return wire.ServerLive()


@router.get("/health/ready")
async def server_ready(request: Request) -> wire.ServerReady:
    """Answer 200 while requests are accepted and a worker is up."""
    request.app.state.engine.check_serving()
    return wire.ServerReady()


# The id of a base model may have slashes, so a name matches a path.
# Routes with more parts come first.


@router.get("/models/{name:path}/versions/{version}/ready")
async def version_ready(name: str, version: str, request: Request) -> wire.ModelReady:
    """Answer 200 while this version of the model answers."""
    return await _ready(name, version, request)


@router.get("/models/{name:path}/versions/{version}")
async def version_metadata(name: str, version: str, request: Request) -> wire.ModelMetadata:
    """Describe what this version of the model takes and gives."""
    return metadata(await _find(name, version, request))


@router.post(
    "/models/{name:path}/versions/{version}/infer", response_model=wire.InferResponse, responses=_ANSWERS
)
async def version_infer(name: str, version: str, body: wire.InferRequest, request: Request) -> Response:
    """Answer texts with this version of the model."""
    return await _infer(name, version, body, request)


@router.get("/models/{name:path}/ready")
async def model_ready(name: str, request: Request) -> wire.ModelReady:
    """Answer 200 while the model answers."""
    return await _ready(name, None, request)


@router.get("/models/{name:path}")
async def model_metadata(name: str, request: Request) -> wire.ModelMetadata:
    """Describe what a model takes and gives.

    A model is an adapter, by its id or by a name of it, or the base model.
    """
    return metadata(await _find(name, None, request))


@router.post("/models/{name:path}/infer", response_model=wire.InferResponse, responses=_ANSWERS)
async def model_infer(name: str, body: wire.InferRequest, request: Request) -> Response:
    """Answer texts with an adapter, or with the base model adapted to the parameter `support`."""
    return await _infer(name, None, body, request)


async def _find(name: str, version: str | None, request: Request) -> Model:
    """Find the model; `version` None stands for the current one.

    Raises `UnknownModelError`, and `AdapterMismatchError` for an adapter of another base or
    posterior.
    """
    engine = engine_of(request)
    served = engine.served
    by_name = name != served.base.id and NAME.fullmatch(name)
    wanted = f"{name}@{version}" if by_name and version is not None else name
    adapter_id, called = await engine.resolve_model(wanted)
    manifest = None
    if adapter_id is not None:
        with renamed_fields(field_name):
            manifest = (await engine.adapter(adapter_id)).manifest
            check_adapter(manifest, served)
    if called in (adapter_id, served.base.id):
        found = Model(called, manifest)
    else:
        own, _, number = called.partition("@")
        found = Model(own, manifest, number)
    if version not in (None, found.version):
        raise UnknownModelError(f"there is no version {version[:100]!r} of it, only {found.version!r}")
    return found


async def _ready(name: str, version: str | None, request: Request) -> wire.ModelReady:
    engine_of(request).check_serving()
    await _find(name, version, request)
    return wire.ModelReady(name=name)


async def _infer(name: str, version: str | None, body: wire.InferRequest, request: Request) -> Response:
    model = await _find(name, version, request)
    with renamed_fields(field_name):
        native = predict_request(model, body, request.state.tensors)
        wanted = wanted_outputs(body, options_of(model, native))

        def render(answer: schemas.PredictResponse) -> Response:
            response, tensors = infer_response(answer, model, body, wanted)
            json = response.model_dump_json(exclude_none=True).encode()
            if not tensors:
                return Response(json, media_type="application/json")
            headers = {JSON_LENGTH: str(len(json))}
            return Response(json + tensors, media_type="application/octet-stream", headers=headers)

        return await predict_and_render(native, request, render)
