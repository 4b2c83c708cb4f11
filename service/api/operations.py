"""What operators and clients ask about the server itself."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service import schemas
from service.api.http import documented_errors, engine_of
from service.settings import Settings

router = APIRouter(tags=["operations"])


@router.get("/livez", responses=documented_errors(500))
async def livez() -> schemas.Health:
    """200 while the process answers, whatever the model is doing."""
    return schemas.Health(status="alive")


@router.get("/readyz", responses=documented_errors(500, 503))
async def readyz(request: Request) -> schemas.Health:
    """200 while requests are taken and a worker is up; 503 while the model loads and while the server shuts down."""
    engine_of(request).check_serving()
    return schemas.Health(status="ready")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus exposition."""
    return Response(request.app.state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", response_model_exclude_none=True, responses=documented_errors(500, 503))
async def models(request: Request) -> schemas.ModelList:
    """The base model and global posterior that this server serves."""
    served = engine_of(request).served
    card = schemas.ModelCard(
        id=served.base.id,
        base=schemas.BaseInfo(**served.base.to_json()),
        posterior=served.posterior_id,
        max_model_len=served.encoder.max_tokens,
        calibrator=served.calibrator.id if served.calibrator else None,
    )
    return schemas.ModelList(data=[card])


@router.get("/v1/limits", responses=documented_errors(500, 503))
async def limits(request: Request) -> schemas.LimitsReport:
    """What this server accepts."""
    settings: Settings = request.app.state.settings
    told = {
        name: getattr(settings, name)
        for name in schemas.LimitsReport.model_fields
        if name != "max_prompt_tokens"
    }
    return schemas.LimitsReport(max_prompt_tokens=engine_of(request).served.encoder.max_tokens, **told)


@router.get("/v1/workers", responses=documented_errors(500))
async def workers(request: Request) -> schemas.WorkerList:
    """What each worker is up to."""
    statuses = engine_of(request).workers()
    return schemas.WorkerList(data=[schemas.WorkerReport(**asdict(status)) for status in statuses])


@router.get("/v1/version", responses=documented_errors(500))
async def versions() -> schemas.VersionReport:
    """Versions of the service and of the libraries that compute."""
    return schemas.VersionReport(
        version=version("abmll-serve"), torch=version("torch"), transformers=version("transformers")
    )
