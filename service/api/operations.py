"""Probes, metrics, limits, workers and versions: the state of the server itself."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service import schemas
from service.api.error_answers import documented_errors
from service.api.http import engine_of
from service.engine.pricing import worked_examples

router = APIRouter(tags=["operations"])


@router.get("/livez", responses=documented_errors(500))
async def livez() -> schemas.Health:
    """Answer 200 while the process runs, whatever the model does."""
    return schemas.Health(status="alive")


@router.get("/readyz", responses=documented_errors(500, 503))
async def readyz(request: Request) -> schemas.Health:
    """Answer 200 while requests are accepted and a worker is up.

    Answer 503 while the model loads, and while the server drains.
    """
    request.app.state.engine.check_serving()
    return schemas.Health(status="ready")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Show the metrics in the text format of Prometheus."""
    return Response(request.app.state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/limits", responses=documented_errors(500, 503))
async def limits(request: Request) -> schemas.LimitsReport:
    """Show the limits of a request, and what some requests cost."""
    settings, served = request.app.state.settings, engine_of(request).served
    own: dict[str, Any] = {
        "max_prompt_tokens": served.encoder.max_tokens,
        "prices": [schemas.WorkedPrice(**asdict(example)) for example in worked_examples(served)],
    }
    names = schemas.LimitsReport.model_fields.keys() - own
    return schemas.LimitsReport(**own, **{name: getattr(settings, name) for name in names})


@router.get("/v1/workers", response_model_exclude_none=True, responses=documented_errors(500))
async def workers(request: Request) -> schemas.WorkerList:
    """Show the state of each worker."""
    statuses = engine_of(request).workers()
    return schemas.WorkerList(data=[schemas.WorkerReport(**asdict(status)) for status in statuses])


@router.get("/v1/version", responses=documented_errors(500))
async def versions() -> schemas.VersionReport:
    """Show the versions of the service and of the libraries that compute."""
    return schemas.VersionReport(
        version=version("abmll-serve"), torch=version("torch"), transformers=version("transformers")
    )
