from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from service.api.app import create_app
from service.engine.build import open_tenant
from service.engine.engine import Engine
from service.engine.life import State
from service.engine.stores import stores_of
from service.executors.inline import inline_executor
from service.gating.keeper import GateKeeper
from service.metrics import Metrics
from service.server import DrainingServer, uvicorn_config
from service.settings import Settings
from tests.service.fakes import FakeWorker

# A long run shares the machine with other work: only what is stuck takes that long.
SCENARIO_SECONDS = 60 if os.environ.get("EXAMPLES") is None else 300
Scenario = Callable[[httpx.AsyncClient], Awaitable[None]]


@dataclass(frozen=True)
class Listening:
    """A listening server, used from another thread."""

    uvicorn: DrainingServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.uvicorn.servers[0].sockets[0].getsockname()[1]}"

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


class Server:
    """The application in this process, with a fake worker and a real store. Runs once."""

    def __init__(self, root: Path, worker: FakeWorker | None = None, **settings: object) -> None:
        self.worker = worker or FakeWorker()
        self.settings = Settings(data_dir=root, **settings)
        self.metrics = Metrics()
        stores = stores_of(self.settings)
        self.store = stores.adapters
        executor = inline_executor(self.worker.load, self.metrics)
        gates = GateKeeper(self.settings, stores.calibrations, self.metrics, stores.fresh_seconds)
        others = partial(open_tenant, self.settings, self.metrics)
        self.engine = Engine(self.settings, executor, self.store, stores.names, gates, self.metrics, others)
        self.app = create_app(self.settings, self.engine, self.metrics)

    @contextlib.asynccontextmanager
    async def running(self, *, ready: bool = True) -> AsyncIterator[httpx.AsyncClient]:
        """Start the server, yield an HTTP client for it, and shut it down."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with (
            self.app.router.lifespan_context(self.app),
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
        ):
            if ready:
                await self.app.state.loading
            yield client

    def run(self, scenario: Scenario, *, ready: bool = True) -> None:
        """Run `scenario`, a coroutine function, against the running server."""

        async def play() -> None:
            async with asyncio.timeout(SCENARIO_SECONDS), self.running(ready=ready) as client:
                await scenario(client)

        asyncio.run(play())

    def set_deadline(self, seconds: float) -> None:
        """Give later requests this deadline. A short one is for those that have to be late."""
        self.engine._settings = self.settings.model_copy(update={"deadline_seconds": float(seconds)})

    @contextlib.contextmanager
    def listening(self, drain_seconds: float = 5) -> Iterator[Listening]:
        """Run the server with uvicorn in a thread, on a free port, until the context ends."""
        config = uvicorn_config(self.app, self.settings.model_copy(update={"port": 0}))
        running = Listening(DrainingServer(config, self.engine, drain_seconds, self.settings.body_seconds))
        thread = threading.Thread(target=lambda: asyncio.run(running.uvicorn.serve()))
        thread.start()
        running.wait_for(lambda: running.uvicorn.started and self.engine.state is not State.STARTING)
        try:
            yield running
        finally:
            running.uvicorn.should_exit = True
            thread.join()

    def post(self, path: str, body: object) -> httpx.Response:
        """Return the answer to one POST; the server runs for this request only."""
        answers = []

        async def scenario(client: httpx.AsyncClient) -> None:
            answers.append(await client.post(path, json=body))

        self.run(scenario)
        return answers[0]


def pass_time(seconds: float) -> None:
    """Move the clock of this event loop on. A deadline is then passed, however slow the machine is."""
    loop = asyncio.get_running_loop()
    loop.time = partial(lambda now: now() + seconds, loop.time)  # type: ignore[method-assign]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`. The timeout of the scenario limits the wait."""
    while not condition():
        await asyncio.sleep(0.002)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)
