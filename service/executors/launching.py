"""How the workers of a pool are started, and started again after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from service.executors.members import Member, Members
from service.executors.messages import Ended, Event
from service.executors.ports import Port
from service.metrics import Metrics


class Launcher:
    """Starts workers; owns the tasks that go on in the background of a pool."""

    def __init__(
        self,
        spawn: Callable[[int], Port],
        on_event: Callable[[Member, Port | None, Event], None],
        members: Members,
        metrics: Metrics,
    ) -> None:
        """Get the port of each worker from `spawn`, by its index, and pass its events on."""
        self._spawn, self._on_event = spawn, on_event
        self._members, self._metrics = members, metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def launch(self, member: Member) -> None:
        """Start a worker. Raises `OSError` where no pipe or process can be made."""
        loop = asyncio.get_running_loop()
        port = member.port = self._spawn(int(member.name))
        self._members.set_state(member, "starting")
        member.silent_beats, member.held, member.restarting = 0, frozenset(), False
        member.leaving, member.done, member.slow_checks, member.checking = "", 0, 0, False

        def emit(event: Event) -> None:
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._on_event, member, port, event)

        port.start(emit)

    def launch_again(self, member: Member) -> None:
        """Start a worker again. Where that fails, the event `Ended` follows."""
        member.restarts += 1
        self._metrics.worker_restarts.labels(member.name).inc()
        try:
            self.launch(member)
        except OSError as error:
            self._on_event(member, member.port, Ended(error))

    def launch_later(self, member: Member, wait_seconds: float) -> None:
        """Start a worker again after a while, unless another one has taken its place by then."""
        member.restarting = True

        async def relaunch() -> None:
            await asyncio.sleep(wait_seconds)
            if member in self._members.all:
                self.launch_again(member)

        self.start_task(relaunch())

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Let `work` go on in the background."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel_tasks(self) -> None:
        """Cancel what goes on in the background."""
        for task in self._tasks:
            task.cancel()
