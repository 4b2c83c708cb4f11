"""The worker process: loads a worker, drives its loop, and ends when the server does."""

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
from service.executors.link import Link, picklable
from service.executors.loop import WorkerLoop, drive
from service.executors.messages import Beat, Command, Ended, Failed, Ready, Stop
from service.executors.usage import gpu_bytes, resident_bytes
from service.logs import set_up_logs

log = logging.getLogger(__name__)

NICENESS = 5
"""How far a worker stands back: where cores are few, the server still answers at once that it lives,
or that it is full.
"""


def main(
    name: str,
    connection: Connection,
    load: Callable[[], Worker],
    adapt_share: float,
    heartbeat_seconds: float,
    set_up_logs: Callable[..., None] = set_up_logs,
) -> None:
    """Run until the command to stop, until the server has ended, or until the worker fails.

    `set_up_logs` takes the name of the worker.
    """
    # A terminal or a service manager signals the whole process group. The server decides whether
    # to drain first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_up_logs(worker=name)
    os.nice(NICENESS)
    link = Link(connection)
    commands: SimpleQueue[Command] = SimpleQueue()
    _start(lambda: _listen(link, commands))
    try:
        worker = load()
        loop = WorkerLoop(worker, adapt_share)
        link.send(Ready(worker.served))
        _start(lambda: _beat(link, loop, heartbeat_seconds))
        for event in drive(loop, commands):
            message = replace(event, error=picklable(event.error)) if isinstance(event, Failed) else event
            link.send(message)
    except BaseException as error:
        with suppress(OSError):  # the server has ended
            link.send(Ended(picklable(error)))
    os._exit(1)  # without destructors, which may hang on a broken device


def _listen(link: Link, commands: SimpleQueue[Command]) -> None:
    """Receive commands while the main thread works.

    End the process at once, in the middle of a unit, on `Stop` or when the server has ended.
    """
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
        with suppress(OSError):  # the server has ended: `_listen` ends the process
            link.send(Beat(loop.busy_seconds, loop.unit_size, resident_bytes(), gpu_bytes()))


def _start(target: Callable[[], None]) -> None:
    threading.Thread(target=target, daemon=True).start()
