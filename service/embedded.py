"""The whole server inside this process, without a port, answered through the client's `Client`.

This module needs the distribution `abmll-client`; nothing else of the server does. `connect` is
registered in the entry point group `abmll_client.local`, where the client finds it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import threading
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

try:
    from abmll_client import Client
except ImportError as error:
    raise ImportError("service.embedded needs the client: install the distribution abmll-client") from error

from service.api.app import create_app
from service.engine.build import build_engine
from service.executors.build import build_executor
from service.metrics import Metrics
from service.settings.loading import load_settings

T = TypeVar("T")

UNBOUNDED_SECONDS = 7 * 24 * 3600.0
"""Deadline of a request: a week. In this process, no other client waits for the engine."""


class Embedded:
    """An application that runs on an event loop of its own, in a thread.

    The constructor loads the model, and raises what loading raises.
    """

    def __init__(self, app: FastAPI) -> None:
        self._thread = _LoopThread()
        self._lifespan = app.router.lifespan_context(app)
        try:
            self._thread.run(self._lifespan.__aenter__())
            try:
                self._thread.run(_loaded(app))
            except BaseException:
                self._thread.run(self._lifespan.__aexit__(None, None, None))
                raise
        except BaseException:
            self._thread.close()
            raise
        self._transport = _InProcess(app, self._thread)

    def client(self) -> Client:
        """Make a client of this application; there may be any number, in any thread."""
        return Client("http://embedded", transport=self._transport, timeout=UNBOUNDED_SECONDS)

    def close(self) -> None:
        """Release the model and end the thread."""
        self._thread.run(self._lifespan.__aexit__(None, None, None))
        self._thread.close()


class _LoopThread:
    """A thread that runs an event loop. It does not keep the process alive."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded", daemon=True)
        self._thread.start()
        self._process = os.getpid()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and return its result.

        Raises `RuntimeError` in a process that was forked from the thread's: the thread is not
        there, and nothing would ever answer.
        """
        if os.getpid() != self._process:
            work.close()
            raise RuntimeError(_FORKED)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class _InProcess(httpx.BaseTransport):
    def __init__(self, app: FastAPI, thread: _LoopThread) -> None:
        self._asgi, self._thread = httpx.ASGITransport(app, raise_app_exceptions=False), thread

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._thread.run(self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._asgi.handle_async_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())


async def _loaded(app: FastAPI) -> None:
    await app.state.loading


class _Shared:
    """The engine that a process shares, and the folder of its adapters; None while none runs.

    `forked` says that the engine runs in the process that this one was forked from.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: Embedded | None = None
        self.folder: Path | None = None
        self.forked = False


_shared = _Shared()
_FORKED = (
    "the engine does not run in this process, which was forked from the engine's: start processes with "
    'multiprocessing.get_context("spawn"), or use a server by its base_url'
)


def start(**settings: Any) -> Embedded:
    """Start the process's engine, with settings as in `service.settings`.

    Settings left out come from the environment. Adapters are kept in a temporary folder, so that a
    server or another process can have the usual one. Raises `RuntimeError` if the engine runs
    already, or if it ran in the process that this one was forked from. Raises `SettingsError`, and
    whatever loading the model raises.
    """
    with _shared.lock:
        if _shared.running is not None:
            raise RuntimeError("the engine of this process runs already: stop() it first")
        return _start(settings)


def shared() -> Embedded:
    """Return the process's engine, started now if it does not run. Raises as `start`."""
    with _shared.lock:
        return _shared.running or _start({})


def connect() -> Client:
    """Make a client of the process's engine, started now if it does not run. Raises as `start`."""
    return shared().client()


def stop() -> None:
    """Stop the process's engine, if it runs."""
    with _shared.lock:
        if _shared.running is not None:
            _shared.running.close()
        _shared.running = None
        _remove_folder()


def _start(given: dict[str, Any]) -> Embedded:
    if _shared.forked:
        # Not a new engine: OpenMP, with which torch computes, hangs in a forked process.
        raise RuntimeError(_FORKED)
    with ExitStack() as on_failure:
        _shared.folder = Path(mkdtemp(prefix="abmll-"))
        on_failure.callback(_remove_folder)
        own = {
            "data_dir": _shared.folder,
            "deadline_seconds": UNBOUNDED_SECONDS,
            "queue_seconds": UNBOUNDED_SECONDS,
        }
        settings = load_settings(**{**own, **given})
        metrics = Metrics()
        engine = build_engine(settings, build_executor(settings, metrics, "inline"), metrics)
        _shared.running = Embedded(create_app(settings, engine, metrics))
        on_failure.pop_all()
    return _shared.running


def _remove_folder() -> None:
    if _shared.folder is not None:
        shutil.rmtree(_shared.folder, ignore_errors=True)
    _shared.folder = None


def _forget_in_child() -> None:
    """Leave the engine and its folder to the process that this one was forked from."""
    _shared.forked = _shared.forked or _shared.running is not None
    _shared.lock, _shared.running, _shared.folder = threading.Lock(), None, None


# The engine is not closed when the process ends: threads that closing needs are gone by then, and
# those of the engine end with the process.
atexit.register(_remove_folder)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
