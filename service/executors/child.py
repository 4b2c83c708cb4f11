"""The worker process: loads a worker, drives its loop, tells the server by pipe, and ends when the pipe does."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue

from service.executors.contract import Worker
from service.executors.link import Link, portable
from service.executors.loop import WorkerLoop, drive
from service.executors.messages import Beat, Command, Ended, Failed, Ready, Stop

log = logging.getLogger(__name__)


def main(
    name: str,
    connection: Connection,
    load: Callable[[], Worker],
    adapt_share: float,
    heartbeat_seconds: float,
) -> None:
    """Run until told to stop, until the server is gone, or until the worker fails for good."""
    # A terminal or a service manager signals the whole group; whether to drain is the server's decision.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    form = f"%(asctime)s %(levelname)s worker {name} %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form)
    link = Link(connection)
    commands: SimpleQueue[Command] = SimpleQueue()
    _start(lambda: _listen(link, commands))
    try:
        worker = load()
        loop = WorkerLoop(worker, adapt_share)
        link.send(Ready(worker.served))
        _start(lambda: _beat(link, loop, heartbeat_seconds))
        for event in drive(loop, commands):
            told = replace(event, error=portable(event.error)) if isinstance(event, Failed) else event
            link.send(told)
    except BaseException as error:
        with suppress(OSError):  # the server is gone
            link.send(Ended(portable(error)))
    os._exit(1)  # at once: no destructor may hang on a broken device


def _listen(link: Link, commands: SimpleQueue[Command]) -> None:
    """Take commands while the main thread works. Leaves the process at once, in the middle of a unit, when nobody is there."""
    try:
        while not isinstance(command := link.receive(), Stop):
            commands.put(command)
    except (EOFError, OSError):
        pass
    except Exception:
        log.exception("a command could not be read")
    os._exit(0)


def _beat(link: Link, loop: WorkerLoop, seconds: float) -> None:
    while True:
        time.sleep(seconds)
        with suppress(OSError):  # the listener sees to it
            link.send(Beat(loop.busy_seconds))


def _start(target: Callable[[], None]) -> None:
    threading.Thread(target=target, daemon=True).start()
