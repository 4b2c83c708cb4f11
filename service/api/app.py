"""The HTTP application: its surfaces, its middleware, and when the engine starts and closes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from abmll.errors import AbmllError
from model_store.errors import StoreError, StoreUnavailableError
from service.api import batches, classify, decisions, oip, openai, operations, systemone
from service.api.absolute_targets import AbsoluteTargets
from service.api.authentication import Authentication
from service.api.body_limit import BodyLimit
from service.api.decisions.rows import DecisionRows
from service.api.document import operation_id, shorten_names
from service.api.error_answers import ErrorForm, UnexpectedErrors, answer_error
from service.api.head_requests import HeadAsGet
from service.api.native import diagnosis as diagnose
from service.api.native import gates, names, progress, readapting
from service.api.native import routes as native
from service.api.native.rows import PredictRows
from service.api.oip.binary import JSON_LENGTH
from service.api.openai.rows import ChatRows
from service.api.request_log import RequestLog
from service.api.root_path import RootPath
from service.api.scopes import scope_dependencies
from service.bulk.contract import Endpoint
from service.bulk.manager import BulkWork
from service.engine.engine import Engine
from service.errors import ServiceError
from service.metrics import Metrics
from service.playground import router as playground
from service.principals.keyring import KeyRing
from service.principals.quotas import LIMIT_HEADERS
from service.settings import Settings
from service.tracing import make_tracer

log = logging.getLogger(__name__)

NATIVE = (native, progress, diagnose, readapting, gates, names, operations)
COMPATIBLE = (openai, batches, decisions, systemone, classify, oip)
ERROR_FORMS = {
    **{prefix: ErrorForm(surface.error_shape) for surface in COMPATIBLE for prefix in surface.PREFIXES},
    **{prefix: ErrorForm(systemone.error_shape, invalid_status=422) for prefix in systemone.PREFIXES},
}
"""Error forms by the beginning of the path. All other paths have the native form."""
# TypeSafe's client reads the id of a request from a header of its own.
ID_HEADERS = dict.fromkeys((*systemone.PREFIXES, "/v1/models"), systemone.ID_HEADER)

_DESCRIPTION = """Give a few labelled examples and texts to answer; get answers with a probability for each option, averaged over
samples of a posterior over the model's weights, and a decision to answer or to abstain."""


def create_app(settings: Settings, engine: Engine, metrics: Metrics) -> FastAPI:
    """Make the HTTP application around `engine`.

    The application starts at once and loads the model beside the event loop. Until that is done,
    `/readyz` gives 503. Raises `SettingsError` where the keys cannot be read.
    """
    keys = KeyRing(settings.keys_file) if settings.keys_file is not None else None

    metrics.gateway.shows_ids = keys is None or not settings.open_metrics
    bulk = BulkWork(settings, _row_endpoints(settings, engine), metrics, keys.current if keys else None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.loading = loading = asyncio.create_task(engine.start())
        loading.add_done_callback(_log_failed_load)
        bulk.start()
        yield
        await bulk.close()
        loading.cancel()
        await asyncio.wait([loading])
        await engine.close()

    # Its documentation pages need nothing from other servers.
    app = FastAPIOffline(
        title="ABMLL Serve",
        version=version("abmll-serve"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
        dependencies=scope_dependencies(settings),
    )
    shorten_names(app)
    app.state.settings, app.state.engine, app.state.metrics = settings, engine, metrics
    app.state.bulk = bulk
    app.state.started = datetime.now(UTC)
    for surface in (*NATIVE, *COMPATIBLE):
        app.include_router(surface.router)
    if settings.playground:
        app.include_router(playground)
    app.state.error_forms, app.state.paths = ERROR_FORMS, _paths()
    for kind in (ServiceError, AbmllError, StoreUnavailableError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    # The last one added is the outermost.
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        max_seconds=settings.body_seconds,
        files=batches.FILES,
        max_file_bytes=settings.max_file_bytes,
    )
    app.add_middleware(Authentication, settings=settings, engine=engine, keys=keys)
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(HeadAsGet)
    if origins := settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
            allow_headers=["*"],  # OpenAI's client sends many of its own
            expose_headers=[
                "x-request-id",
                systemone.ID_HEADER,
                "retry-after",
                "location",
                JSON_LENGTH,
                *LIMIT_HEADERS,
            ],
        )
    app.add_middleware(RequestLog, metrics=metrics, id_headers=ID_HEADERS, tracer=make_tracer())
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    app.add_middleware(AbsoluteTargets)
    return app


def _row_endpoints(settings: Settings, engine: Engine) -> dict[str, Endpoint]:
    """Return what answers the rows of batches, by the path that they name."""
    return {
        "/v1/predict": PredictRows(engine),
        "/v1/decisions": DecisionRows(engine, settings.aliases),
        "/v1/chat/completions": ChatRows(engine, settings.max_new_tokens),
    }


def _paths() -> list[str]:
    """Return the paths of all surfaces, as `/v1/adapters/{adapter_id}`."""
    routes = [route for surface in (*NATIVE, *COMPATIBLE) for route in surface.router.routes]
    return [route.path.replace(":path}", "}") for route in routes if isinstance(route, Route)]


def _log_failed_load(loading: asyncio.Task[None]) -> None:
    if loading.cancelled() or loading.exception() is None:
        return
    error = loading.exception()
    # The operator can mend an expected error: its message suffices. Others need a traceback.
    expected = isinstance(error, StoreError | AbmllError)
    log.error("the model could not be loaded: %s", error, exc_info=None if expected else error)
