"""A worker in the server's own process: one thread that owns the model. It is never restarted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from service.executors.contract import Worker
from service.executors.loop import WorkerLoop, drive
from service.executors.messages import Command, Ended, Event, Ready, Stop
from service.executors.pool import WorkerPool
from service.metrics import Metrics


def inline_executor(
    load: Callable[[], Worker], metrics: Metrics | None = None, *, adapt_share: float = 0.5
) -> WorkerPool:
    """Build an executor with one worker. `load` is called once, on the thread of the worker."""
    return WorkerPool(lambda _: _ThreadPort(load, adapt_share), 1, metrics or Metrics(), None)


class _ThreadPort:
    def __init__(self, load: Callable[[], Worker], adapt_share: float) -> None:
        self._load, self._adapt_share = load, adapt_share
        self._commands: SimpleQueue[Command] = SimpleQueue()

    def start(self, emit: Callable[[Event], None]) -> None:
        # A daemon thread, so that a unit that does not end cannot keep the process from ending.
        threading.Thread(target=self._work, args=(emit,), name="model", daemon=True).start()

    def send(self, command: Command) -> None:
        self._commands.put(command)

    def kill(self) -> None:
        self.close()

    def close(self) -> None:
        """Send the command to stop, without waiting: the current unit finishes in its thread."""
        self._commands.put(Stop())

    def _work(self, emit: Callable[[Event], None]) -> None:
        try:
            worker = self._load()
            emit(Ready(worker.served))
            for event in drive(WorkerLoop(worker, self._adapt_share), self._commands):
                emit(event)
        except BaseException as error:
            emit(Ended(error))
        else:
            emit(Ended(None))
