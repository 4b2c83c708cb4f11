"""The whole server inside this process, without a port, answered through the client's `Client`.

This module needs the distribution `abmll-client`; nothing else of the server does. `connect` is
registered in the entry point group `abmll_client.local`, where the client finds it.
"""

from __future__ import annotations

import atexit
import threading
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

try:
    from abmll_client import Client
except ImportError as error:
    raise ImportError("service.embedded needs the client: install the distribution abmll-client") from error

from service.api.app import create_app
from service.engine.build import build_engine
from service.executors.build import build_executor
from service.metrics import Metrics
from service.settings import load_settings

UNBOUNDED_SECONDS = 7 * 24 * 3600.0
"""Deadline of a request: a week. In this process, no other client waits for the engine."""


class Embedded:
    """An application that runs on an event loop of its own, in a thread.

    The constructor loads the model, and raises what loading raises.
    """

    def __init__(self, app: FastAPI) -> None:
        with ExitStack() as starting:
            portal = starting.enter_context(start_blocking_portal())
            starting.enter_context(portal.wrap_async_context_manager(app.router.lifespan_context(app)))
            portal.call(_loaded, app)
            self._running = starting.pop_all()
        self._transport = _InProcess(app, portal)

    def client(self) -> Client:
        """Make a client of this application; there may be any number, in any thread."""
        return Client("http://embedded", transport=self._transport, timeout=UNBOUNDED_SECONDS)

    def close(self) -> None:
        """Release the model and end the thread."""
        self._running.close()


class _InProcess(httpx.BaseTransport):
    def __init__(self, app: FastAPI, portal: BlockingPortal) -> None:
        self._asgi, self._portal = httpx.ASGITransport(app, raise_app_exceptions=False), portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._portal.call(self._answer, request)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._asgi.handle_async_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())


async def _loaded(app: FastAPI) -> None:
    await app.state.loading


class _Shared:
    """The engine that a process shares, and the folder of its adapters; None while none runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: Embedded | None = None
        self.folder: TemporaryDirectory[str] | None = None


_shared = _Shared()


def start(**settings: Any) -> Embedded:
    """Start the process's engine, with settings as in `service.settings`.

    Settings left out come from the environment. Adapters are kept in a temporary folder, so that a
    server or another process can have the usual one. Raises `RuntimeError` if the engine runs
    already, `SettingsError`, and what loading the model raises.
    """
    with _shared.lock:
        if _shared.running is not None:
            raise RuntimeError("the engine of this process runs already: stop() it first")
        return _start(settings)


def shared() -> Embedded:
    """Return the process's engine, started now if it does not run."""
    with _shared.lock:
        return _shared.running or _start({})


def connect() -> Client:
    """Make a client of the process's engine, started now if it does not run."""
    return shared().client()


def stop() -> None:
    """Stop the process's engine, if it runs; it also stops when the process ends."""
    with _shared.lock:
        if _shared.running is not None:
            _shared.running.close()
        if _shared.folder is not None:
            _shared.folder.cleanup()
        _shared.running = _shared.folder = None


def _start(given: dict[str, Any]) -> Embedded:
    with ExitStack() as on_failure:
        folder = TemporaryDirectory(prefix="abmll-")
        on_failure.callback(folder.cleanup)
        own = {"data_dir": Path(folder.name), "deadline_seconds": UNBOUNDED_SECONDS}
        settings = load_settings(**{**own, **given})
        metrics = Metrics()
        engine = build_engine(settings, build_executor(settings, metrics, "inline"), metrics)
        _shared.running, _shared.folder = Embedded(create_app(settings, engine, metrics)), folder
        on_failure.pop_all()
    return _shared.running


atexit.register(stop)
