"""Workers in processes, one for each device.

A crash, a hang or a device error ends one worker only, and the pool restarts it.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection
from queue import SimpleQueue

from service.executors import child
from service.executors.contract import Worker
from service.executors.link import Link
from service.executors.messages import Command, Ended, Event, Failed, Stop, Submit
from service.executors.pool import WorkerPool
from service.executors.ports import begun_early
from service.executors.self_check import SelfCheck
from service.executors.supervision import Supervision
from service.logs import set_up_logs
from service.metrics import Metrics

_CLOSE_SECONDS = 5.0
# Spawned, since a forked child would inherit the locks of threads and a CUDA context.
_spawning = multiprocessing.get_context("spawn")


def process_executor(
    loads: Sequence[Callable[[], Worker]],
    metrics: Metrics | None = None,
    *,
    adapt_share: float = 0.5,
    supervision: Supervision | None = None,
    check: SelfCheck | None = None,
    early: bool = False,
    set_up_logs: Callable[..., None] = set_up_logs,
    has_room: Callable[[int], bool] = lambda _: False,
) -> WorkerPool:
    """Build an executor with one worker process for each of `loads`.

    Each of `loads` is pickled, and called in its process, and so is `set_up_logs`. With `early`,
    processes start to load now and not when the executor is started, at the same time as this
    process's own imports. `has_room` is that of the pool.
    """
    times = supervision or Supervision()

    def make(index: int) -> _ProcessPort:
        return _ProcessPort(str(index), loads[index], adapt_share, times.heartbeat_seconds, set_up_logs)

    spawn = begun_early(make, len(loads) if early else 0)
    return WorkerPool(spawn, len(loads), metrics or Metrics(), times, check, has_room)


class _ProcessPort:
    """A worker process, and two threads that read from it and write to it.

    Threads, since pickling tensors would block the event loop.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Worker],
        adapt_share: float,
        heartbeat_seconds: float,
        set_up_logs: Callable[..., None],
    ) -> None:
        ours, self._theirs = _spawning.Pipe(duplex=True)
        self._ours, self._link = ours, Link(ours)
        self._outbox: SimpleQueue[Command | None] = SimpleQueue()
        self._process = _spawning.Process(
            target=child.main,
            args=(name, self._theirs, load, adapt_share, heartbeat_seconds, set_up_logs),
            name=f"abmll-worker-{name}",
            daemon=True,
        )

    def begin(self) -> None:
        """Start the process, without the threads. Raises `OSError`."""
        self._process.start()
        self._theirs.close()  # an open copy in this process would hide that the worker ended
        # If the server ends without `close`, it must not wait for workers, which ignore SIGTERM.
        atexit.register(self._process.kill)

    def start(self, emit: Callable[[Event], None]) -> None:
        try:
            if self._process.pid is None:
                self.begin()
        except OSError as error:
            emit(Ended(error))
            return
        for target in (self._read, self._write):
            threading.Thread(target=target, args=(emit,), name=self._process.name, daemon=True).start()

    def send(self, command: Command) -> None:
        self._outbox.put(command)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._outbox.put(Stop())
        self._process.join(_CLOSE_SECONDS)
        self._process.kill()
        self._process.join()

    def _read(self, emit: Callable[[Event], None]) -> None:
        ended: Event = Ended(None)
        try:
            # The process is watched as well as the pipe, which a child of the worker may keep open.
            while self._ours in connection.wait([self._ours, self._process.sentinel]):
                event = self._link.receive()
                if isinstance(event, Ended):
                    ended = event
                    break
                emit(event)
        except (EOFError, OSError):
            pass
        except Exception as error:  # a message that this process cannot read
            ended = Ended(error)
        self._process.kill()
        self._process.join()
        atexit.unregister(self._process.kill)
        emit(ended)
        self._outbox.put(None)

    def _write(self, emit: Callable[[Event], None]) -> None:
        while (command := self._outbox.get()) is not None:
            try:
                self._link.send(command)
            except OSError:
                pass  # `_read` sees that the worker ended
            except Exception as error:
                if isinstance(command, Submit):
                    emit(Failed(command.job_id, error))
        with contextlib.suppress(OSError):
            self._link.close()
