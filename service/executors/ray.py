"""Workers as actors of Ray, one for each GPU or set of CPUs, on this machine or on a cluster.

Ray chooses the node of an actor, and says when a node or an actor is lost. The pool replays the
jobs and asks for another actor, which waits in Ray until some node has room: so workers join when
nodes do, and leave with them.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from service.executors.actor import WorkerActor
from service.executors.contract import Worker
from service.executors.messages import Command, Ended, Event, Failed, Submit
from service.executors.pool import WorkerPool
from service.executors.ports import begun_early
from service.executors.self_check import SelfCheck
from service.executors.supervision import Supervision
from service.logs import set_up_logs
from service.metrics import Metrics

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
_PLACEMENT_SECONDS = 30.0  # after which the log says that a worker waits for room
# What crosses the object store is one adapter at a time, of about 10 MB, and is freed at once.
_OBJECT_STORE_BYTES = 100 << 20
# Two threads in the actor: a command is taken while the call for events waits.
_THREADS = {"commands": 1, "events": 1}


class RayWorker(WorkerActor):
    """The class that Ray makes actors of."""

    def take(self, command: bytes) -> None:
        """See `WorkerActor.take`."""
        super().take(command)

    def events(self) -> bytes:
        """See `WorkerActor.events`."""
        return super().events()


# Marks the methods. Where a method is called, Ray's client takes no name of a thread.
ray.method(concurrency_group="commands")(RayWorker.take)
ray.method(concurrency_group="events")(RayWorker.events)


@dataclass(frozen=True)
class RayRoom:
    """What one worker needs of its node, in units of Ray's resources."""

    cpus: int = 1
    gpus: int = 0


@dataclass
class RayCluster:
    """Connection of this process to Ray.

    Without an `address`, Ray runs on this machine, with room for so many `workers`.
    """

    address: str | None
    room: RayRoom
    workers: int
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _connections: int = 0

    def connect(self) -> int:
        """Connect, if this process is not, and return the number of the connection.

        Raises `ConnectionError` where no cluster answers.
        """
        with self._lock:
            if not ray.is_initialized():
                connected: Future[None] = Future()
                threading.Thread(target=self._hold, args=(connected,), name="ray", daemon=True).start()
                connected.result()
                self._connections += 1
            return self._connections

    def _hold(self, connected: Future[None]) -> None:
        """Connect, and stay: processes of Ray on this machine end with the thread that started
        them.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            if self.address is None:
                ray.init(
                    "local",
                    num_cpus=self.room.cpus * self.workers,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                )
            else:
                ray.init(self.address, logging_level=logging.ERROR)
        except Exception as error:  # of many kinds, which rarely name the address
            where = "on this machine" if self.address is None else f"at {self.address}"
            failed = ConnectionError(f"cannot connect to Ray {where} (ray_address): {error}")
            failed.__cause__ = error
            connected.set_exception(failed)
            return
        connected.set_result(None)
        threading.Event().wait()

    def disconnect(self, connection: int) -> None:
        """Leave a cluster that does not answer, so that the next `connect` tries again.

        Every worker of a lost connection calls this. The connection that follows it stays.
        """
        with self._lock:
            if connection == self._connections:
                ray.shutdown()


def ray_executor(
    loads: Sequence[Callable[[], Worker]],
    metrics: Metrics | None = None,
    *,
    address: str | None = None,
    room: RayRoom = RayRoom(),
    adapt_share: float = 0.5,
    supervision: Supervision | None = None,
    check: SelfCheck | None = None,
    early: bool = False,
    set_up_logs: Callable[..., None] = set_up_logs,
) -> WorkerPool:
    """Build an executor with one actor for each of `loads`, each with so much `room`.

    Each of `loads` is pickled, and called in its actor, and so is `set_up_logs`. `address` is that
    of a cluster: `auto`, `host:port`, or `ray://host:port`. With `early`, actors start to load now
    and not when the executor is started. Where the cluster has room for fewer, the others join when
    it has.
    """
    times = supervision or Supervision()
    cluster = RayCluster(address, room, len(loads))

    def make(index: int) -> _RayPort:
        return _RayPort(str(index), cluster, loads[index], adapt_share, times.heartbeat_seconds, set_up_logs)

    spawn = begun_early(make, len(loads) if early else 0)
    return WorkerPool(spawn, len(loads), metrics or Metrics(), times, check)


class _RayPort:
    """An actor, and threads that make it, read from it and write to it.

    Threads, since a call of Ray may wait for the network or for a node.
    """

    def __init__(
        self,
        name: str,
        cluster: RayCluster,
        load: Callable[[], Worker],
        adapt_share: float,
        heartbeat_seconds: float,
        set_up_logs: Callable[..., None],
    ) -> None:
        self._name, self._cluster, self._connection = name, cluster, 0
        self._arguments = (name, load, adapt_share, heartbeat_seconds, set_up_logs)
        self._over, self._lock = False, threading.Lock()
        self._actor: Future[Any] = Future()
        self._outbox: SimpleQueue[Command | None] = SimpleQueue()
        self._emit: Callable[[Event], None] = lambda _: None
        self._making = self._thread(self._make)
        self._reading = self._thread(self._read)

    def begin(self) -> None:
        """Ask Ray for the actor, without the threads that talk with it."""
        self._making.start()

    def start(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        if self._making.ident is None:
            self.begin()
        self._reading.start()
        self._thread(self._write).start()

    def send(self, command: Command) -> None:
        self._outbox.put(command)

    def kill(self) -> None:
        """End the worker for the pool at once: a node that is cut off cannot confirm it."""
        self._end(None)

    def close(self) -> None:
        self._end(None)
        if self._reading.ident is not None:
            self._reading.join(_CLOSE_SECONDS)

    def _thread(self, target: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=target, name=f"ray-worker-{self._name}", daemon=True)

    def _make(self) -> None:
        room = self._cluster.room
        try:
            self._connection = self._cluster.connect()
            # Ray does not start a lost actor again: the pool asks for another one, with its waits.
            kind = ray.remote(
                num_cpus=room.cpus, num_gpus=room.gpus, max_restarts=0, concurrency_groups=_THREADS
            )(RayWorker)
            self._actor.set_result(kind.remote(*self._arguments))
        except BaseException as error:
            self._actor.set_exception(error)

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            actor = self._actor.result()
            wait: float | None = _PLACEMENT_SECONDS
            while not self._over:
                answer = actor.events.remote()
                try:
                    events = pickle.loads(ray.get(answer, timeout=wait))  # noqa: S301 - from our actor
                except GetTimeoutError:
                    log.warning(
                        "worker %s waits for a node of the Ray cluster with %s",
                        self._name,
                        self._cluster.room,
                    )
                    events = pickle.loads(ray.get(answer))  # noqa: S301
                wait = None
                for event in events:
                    if isinstance(event, Ended):
                        self._end(event.error)
                        return
                    self._emit(event)
        except ConnectionError as failed:  # the cluster, not the actor
            if self._connection:
                self._cluster.disconnect(self._connection)
            error = failed
        except RayError as failed:  # its text has several lines, and its `repr` nothing
            error = RuntimeError(" ".join(str(failed).split()))
        except BaseException as failed:
            error = failed
        self._end(error)

    def _write(self) -> None:
        try:
            actor = self._actor.result()
        except BaseException:
            return  # `_read` says so
        while (command := self._outbox.get()) is not None:
            try:
                message = pickle.dumps(command, protocol=pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                if isinstance(command, Submit):
                    self._emit(Failed(command.job_id, error))
                continue
            try:
                actor.take.remote(message)
            except Exception as error:  # `_read` sees that the actor or the cluster is lost
                log.warning("worker %s could not be sent a command: %r", self._name, error)

    def _end(self, error: BaseException | None) -> None:
        """Emit the last event, once, and have Ray end the actor."""
        with self._lock:
            if self._over:
                return
            self._over = True
        self._outbox.put(None)
        self._emit(Ended(error))
        self._actor.add_done_callback(_kill)


def _kill(actor: Future[Any]) -> None:
    """End the process of the actor, which also frees its CPUs and GPU. Ray does it in the
    background.
    """
    if actor.exception() is not None or not ray.is_initialized():
        return

    def kill() -> None:
        try:
            ray.kill(actor.result())
        except Exception as error:
            log.info("an actor could not be ended: %r", error)

    # A call to a cluster far away may wait, and the pool ends workers from the event loop.
    threading.Thread(target=kill, daemon=True).start()
