"""The application: routes, middleware, and the engine's life from loading to draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from abmll.errors import AbmllError
from service.api import native, operations
from service.api.http import Observed, answer_error
from service.engine.build import build_engine
from service.engine.engine import Engine
from service.errors import ServiceError
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger(__name__)

_DESCRIPTION = """Give a few labelled examples and texts to answer; get answers with a probability for each option, averaged over
samples of a posterior over the model's weights, and a decision to answer or to abstain."""


def create_app(settings: Settings, engine: Engine | None = None, metrics: Metrics | None = None) -> FastAPI:
    """The HTTP application around `engine`, or around one built from `settings`.

    Start-up returns at once: the model loads beside the event loop, with `/readyz` at 503 until it is there.
    """
    metrics = metrics or Metrics()
    engine = engine or build_engine(settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.loading = loading = asyncio.create_task(engine.start())
        yield
        loading.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await loading
        await engine.close()

    app = FastAPI(
        title="ABMLL Serve",
        version=version("abmll-serve"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.settings, app.state.engine, app.state.metrics = settings, engine, metrics
    app.include_router(native.router)
    app.include_router(operations.router)
    for kind in (ServiceError, AbmllError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(Observed, metrics=metrics)
    return app
