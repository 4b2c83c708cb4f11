"""The process of a Ray actor: a worker, its loop on a thread, and its events for the front end.

Nothing here imports Ray. `ray.py` makes an actor of it and calls its methods.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue

from service.executors.contract import Worker
from service.executors.link import picklable
from service.executors.loop import WorkerLoop, drive
from service.executors.messages import Beat, Began, Command, Ended, Event, Failed, Ready
from service.executors.usage import gpu_bytes, resident_bytes
from service.logs import set_up_logs


class WorkerActor:
    """Loads a worker, and does the jobs that the front end sends.

    Messages are pickled here and not by Ray, which would give tensors and arrays out as views of
    its object store: those keep the store full for as long as somebody has them.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Worker],
        adapt_share: float,
        heartbeat_seconds: float,
        set_up_logs: Callable[..., None] = set_up_logs,
    ) -> None:
        """Begin to load. `set_up_logs` takes the name of the worker."""
        set_up_logs(worker=name)
        self._load, self._adapt_share, self._heartbeat_seconds = load, adapt_share, heartbeat_seconds
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._given: list[Event] = []  # by the last call of `events`
        self._known = threading.Event()  # to the front end: that the job of the last `Began` began
        self._loop: WorkerLoop | None = None
        # On a thread, as its process ends when Ray says so, in the middle of a unit too.
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def take(self, command: bytes) -> None:
        """Take a pickled command. Does not wait for the model."""
        self._commands.put(pickle.loads(command))  # noqa: S301 - from the front end that made this actor

    def events(self) -> bytes:
        """Return the events since the last call, pickled, in order.

        A call says that the answer to the one before has come. Without events, wait for one as long
        as a heartbeat. Once the worker is loaded, a heartbeat is the last event.
        """
        if any(isinstance(event, Began) for event in self._given):
            self._known.set()
        events: list[Event] = []
        with suppress(Empty):
            events.append(self._events.get(timeout=self._heartbeat_seconds))
            while True:
                events.append(self._events.get_nowait())
        if self._loop is not None:
            busy, size = self._loop.busy_seconds, self._loop.unit_size
            events.append(Beat(busy, size, resident_bytes(), gpu_bytes()))
        self._given = events
        return pickle.dumps(events, protocol=pickle.HIGHEST_PROTOCOL)

    def _work(self) -> None:
        try:
            worker = self._load()
            loop = WorkerLoop(worker, self._adapt_share)
            self._events.put(Ready(worker.served))
            self._loop = loop
            for event in drive(loop, self._commands):
                match event:
                    case Failed():
                        self._events.put(replace(event, error=picklable(event.error)))
                    case Began():
                        self._tell(event)
                    case _:
                        self._events.put(event)
            self._events.put(Ended(None))  # after the command to stop
        except BaseException as error:
            self._events.put(Ended(picklable(error)))

    def _tell(self, event: Began) -> None:
        """Wait until the front end knows that a job has begun.

        If the job ends this process, the event would end with it. The pool would send the job to
        one worker after the other, and lose them all.
        """
        self._known.clear()
        self._events.put(event)
        self._known.wait()
