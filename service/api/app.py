"""The application: routes, middleware, and the engine's life from loading to draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from abmll.errors import AbmllError
from model_store.adapters.gate_journals import GateJournals
from model_store.errors import StoreError
from service.api import classify, oip, openai, operations
from service.api.http import ErrorShape, Observed, answer_error
from service.api.native import diagnosis as diagnose
from service.api.native import gates
from service.api.native import routes as native
from service.engine.engine import Engine
from service.errors import ServiceError
from service.gating.keeper import GateKeeper
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger(__name__)

OWN = (native, diagnose, gates, operations)
OTHERS = (openai, classify, oip)
ERROR_SHAPES: dict[str, ErrorShape] = {
    prefix: surface.error_shape for surface in OTHERS for prefix in surface.PREFIXES
}
"""By the beginning of the path; our own where none fits."""

_DESCRIPTION = """Give a few labelled examples and texts to answer; get answers with a probability for each option, averaged over
samples of a posterior over the model's weights, and a decision to answer or to abstain."""


def _tell_failure(loading: asyncio.Task[None]) -> None:
    if loading.cancelled() or loading.exception() is None:
        return
    error = loading.exception()
    # What the operator can mend reads best in one line; a surprise needs its traceback.
    expected = isinstance(error, StoreError | AbmllError)
    log.error("the model could not be loaded: %s", error, exc_info=None if expected else error)


def create_app(settings: Settings, engine: Engine, metrics: Metrics) -> FastAPI:
    """The HTTP application around `engine`.

    Start-up returns at once: the model loads beside the event loop, with `/readyz` at 503 until it is there.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.loading = loading = asyncio.create_task(engine.start())
        loading.add_done_callback(_tell_failure)
        yield
        loading.cancel()
        await asyncio.wait([loading])
        await engine.close()

    app = FastAPI(
        title="ABMLL Serve",
        version=version("abmll-serve"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.gates = GateKeeper(settings, engine, GateJournals(settings.calibrations_dir), metrics)
    app.state.settings, app.state.engine, app.state.metrics = settings, engine, metrics
    app.state.started = datetime.now(UTC)
    for surface in (*OWN, *OTHERS):
        app.include_router(surface.router)
    app.state.error_shapes = ERROR_SHAPES
    for kind in (ServiceError, AbmllError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(Observed, metrics=metrics)
    return app
