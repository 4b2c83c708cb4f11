"""Workers that the pool itself ends to start them again: they outgrew a limit, or it was asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from service.executors.jobs import PendingJobs
from service.executors.launching import Launcher
from service.executors.members import Member, Members
from service.executors.messages import Stop
from service.executors.supervision import Supervision
from service.metrics import Metrics

log = logging.getLogger(__name__)
END_SECONDS = 5.0
"""How long a worker has to end by itself, once it is asked to."""


class Renewal:
    """Starts workers again without the loss of a job, one at a time."""

    def __init__(
        self,
        members: Members,
        jobs: PendingJobs,
        launcher: Launcher,
        supervision: Supervision,
        has_room: Callable[[int], bool],
        metrics: Metrics,
    ) -> None:
        """Serve one pool.

        `has_room` says whether another process of so many bytes fits. Where it does and there is
        one worker, that worker ends once the next one is up.
        """
        self._members, self._jobs, self._launcher = members, jobs, launcher
        self._supervision, self._has_room, self._metrics = supervision, has_room, metrics
        self._leaving = asyncio.Lock()

    async def restart_all(self) -> None:
        """Start every worker again, one after the other."""
        for member in list(self._members.all):
            await self._replace(member, "asked for")
            while not self._members.is_up(member.name) and not self._members.closing:
                await asyncio.sleep(0.02)

    def renew_outgrown(self, member: Member) -> None:
        """Start a worker again that has more memory, or has done more, than it may."""
        if member.state != "up" or member.leaving:
            return
        reason = self._supervision.outgrown(member.memory_bytes, member.done)
        if reason is None:
            return
        member.leaving = reason
        self._metrics.fenced.labels(reason).inc()
        self._launcher.start_task(self._replace(member, reason))

    def on_left(self, member: Member) -> None:
        """Start a worker again at once. Its jobs move to others, and are no suspects of a loss.

        One that outgrew its memory soon after its start waits, longer each time: the limit is too
        low.
        """
        if member.successor is not None:
            self._give_place(member)
            return
        soon = not self._supervision.is_stable(time.monotonic() - member.up_since)
        member.losses = member.losses + 1 if soon and member.leaving == "memory" else 0
        if member.losses > 1:
            log.warning("worker %s outgrows worker_memory_bytes soon after its start", member.name)
        self._jobs.move_from(member, lost=False)
        wait = self._supervision.wait_seconds(member.losses) if member.losses else 0.0
        self._launcher.launch_later(member, wait)

    async def _replace(self, member: Member, reason: str) -> None:
        """Let a worker finish its jobs, for a while, and end it; `on_left` starts it again.

        One at a time, and not before another one is up, if there are others.
        """
        async with self._leaving:
            while member.state == "up" and self._members.is_the_only_one_of_several(member):
                await asyncio.sleep(0.02)
            port = member.port
            if member.state != "up" or port is None:  # it was lost, and is started again anyway
                return
            beside = len(self._members.all) == 1 and self._has_room(member.memory_bytes or 0)
            if beside and not await self._begin_beside(member) and reason == "asked for":
                return
            if member.port is not port:  # it was lost meanwhile
                self._give_place(member)
                return
            log.info("worker %s finishes its jobs and is started again: %s", member.name, reason)
            member.leaving = reason
            self._members.set_state(member, "draining")
            until = time.monotonic() + self._supervision.leave_seconds
            while member.pending and member.port is port and time.monotonic() < until:
                await asyncio.sleep(0.01)
            port.send(Stop())
            until = time.monotonic() + END_SECONDS
            while member.port is port and time.monotonic() < until:
                await asyncio.sleep(0.01)
            if member.port is port:
                port.kill()

    async def _begin_beside(self, member: Member) -> bool:
        """Start the next worker while this one works, and return whether it is up."""
        successor = Member(member.name, restarts=member.restarts, tentative=True)
        self._members.all.append(successor)
        self._launcher.launch_again(successor)
        while successor in self._members.all and successor.tentative and not self._members.closing:
            await asyncio.sleep(0.01)
        if successor not in self._members.all or self._members.closing:
            return False
        member.successor = successor
        return True

    def _give_place(self, member: Member) -> None:
        """Forget a worker whose successor is up, if it has one, and move its jobs there."""
        if member.successor is None or member not in self._members.all:
            return
        self._members.all.remove(member)
        if member.port is not None:
            member.port.kill()
        self._jobs.move_from(member, lost=False)
