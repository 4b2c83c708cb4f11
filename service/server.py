"""The server process: uvicorn, which finishes running requests after the first SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from model_store.process_memory import return_large_blocks
from service.address_file import remove_address, write_address
from service.api.app import create_app
from service.engine.build import build_engine
from service.engine.engine import Engine
from service.engine.life import State
from service.executors.contract import Executor
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """A server that still listens while it drains, so that `/readyz` can answer 503.

    It also stops when the model fails to load, and closes connections on which the head of a
    request does not arrive within `head_seconds`; uvicorn would wait for it for ever.
    """

    def __init__(
        self, config: uvicorn.Config, engine: Engine, drain_seconds: float, head_seconds: float
    ) -> None:
        super().__init__(config)
        self._engine, self._drain_seconds, self._head_seconds = engine, drain_seconds, head_seconds
        self._waiting: dict[H11Protocol, float] = {}
        """Connections without a whole head, with the time of the event loop when that was seen."""

    async def main_loop(self) -> None:
        """Serve until a signal, then drain. uvicorn closes the sockets afterwards."""
        await super().main_loop()
        log.info("draining for at most %g s", self._drain_seconds)
        self._engine.drain()
        self._end_connections()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                await self._engine.idle()

    def _end_connections(self) -> None:
        """Have each connection end with its next answer: no client sends to one that is closing."""
        state = self.server_state
        state.default_headers = [*state.default_headers, CLOSE_HEADER]
        for connection in state.connections:
            if isinstance(connection, H11Protocol) and (cycle := connection.cycle) is not None:
                cycle.default_headers = [*cycle.default_headers, CLOSE_HEADER]

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop serving."""
        self._close_waiting(asyncio.get_running_loop().time())
        return self._engine.state is State.FAILED or await super().on_tick(counter)

    def _close_waiting(self, now: float) -> None:
        self._waiting = {
            connection: self._waiting.get(connection, now)
            for connection in self.server_state.connections
            if isinstance(connection, H11Protocol) and _waits_for_a_head(connection)
        }
        for connection, since in self._waiting.items():
            if now - since > self._head_seconds:
                connection.transport.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal and exit with status 0; exit at once at the second.

        Stored adapters are complete either way.
        """
        del frame
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True


class Connection(H11Protocol):
    """A connection whose request may turn out not to be HTTP after its handler has begun."""

    def send_400_response(self, msg: str) -> None:
        """Answer 400, or close the connection if an answer has begun; drop what its handler still
        sends.

        uvicorn would log a traceback for each answer that does not wait for the body, such as 401.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:
            self.transport.close()


def _waits_for_a_head(connection: H11Protocol) -> bool:
    """Return whether nothing or a part of a request's head has come, and no other timer runs."""
    between_requests = connection.cycle is None or connection.cycle.response_complete
    return between_requests and connection.timeout_keep_alive_task is None


def serve(
    settings: Settings,
    executor: Executor,
    metrics: Metrics,
    on_ready: Callable[[str], object] | None = None,
) -> int:
    """Serve on `executor` until a signal, and return the exit status.

    The status is 1 if the model could not be loaded.
    `on_ready` is called in a thread with the server's address when the server accepts requests.
    """
    metrics.show_process()
    metrics.show_disk(settings.data_dir)
    return_large_blocks()  # of adapters that were sent to workers or written to disk
    engine = build_engine(settings, executor, metrics)
    app = create_app(settings, engine, metrics)
    config = uvicorn_config(app, settings)
    server = DrainingServer(config, engine, settings.drain_seconds, settings.body_seconds)

    async def run() -> None:
        restarting = _restart_on_hangup(engine)
        announcing = asyncio.create_task(_announce(server, engine, settings, on_ready))
        try:
            await server.serve()
        finally:
            announcing.cancel()
            remove_address(settings.data_dir)
            for task in restarting:
                task.cancel()

    asyncio.run(run())
    return 1 if engine.state is State.FAILED else 0


def _restart_on_hangup(engine: Engine) -> set[asyncio.Task[None]]:
    """Start the workers again at each SIGHUP, unless it is ignored; return the tasks that do so."""
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    def restart() -> None:
        if tasks or engine.state is not State.READY:
            log.warning(
                "SIGHUP without effect: the workers are being started again, or the server is not ready"
            )
            return
        task = loop.create_task(engine.restart_workers())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, restart)
    return tasks


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Return how uvicorn serves `app`."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        http=Connection,
        timeout_keep_alive=settings.keep_alive_seconds,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        timeout_graceful_shutdown=1,  # `main_loop` has already waited for running requests
    )


async def _announce(
    server: DrainingServer, engine: Engine, settings: Settings, on_ready: Callable[[str], object] | None
) -> None:
    """Write the address to the data folder when the server listens.

    When it accepts requests, log the address, and call `on_ready` with it.
    """
    while not server.started:
        await asyncio.sleep(0.05)
    url = _url(server)
    write_address(settings, url)
    while engine.state is State.STARTING:
        await asyncio.sleep(0.05)
    if engine.state is not State.READY:
        return
    log.info("ready: %s answers, with documentation at %s/docs", url, url)
    if on_ready is not None:
        await asyncio.to_thread(on_ready, url)


def _url(server: DrainingServer) -> str:
    """Return the address of a server that listens, as this machine reaches it."""
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound to
    scheme = "https" if server.config.is_ssl else "http"
    return f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"
