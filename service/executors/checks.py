"""Checks of a pool's workers by known answers: when one is due, and what it finds."""

from __future__ import annotations

import time
from dataclasses import dataclass

from service.errors import WorkerLostError
from service.executors.jobs import PendingJobs
from service.executors.members import Member
from service.executors.self_check import SelfCheck
from service.executors.supervision import Supervision


@dataclass(frozen=True)
class Fault:
    """Why a worker has to be ended: a word for the metrics, and what the log says."""

    reason: str
    what: str


class WorkerChecks:
    """Gives workers the job with known answers."""

    def __init__(self, check: SelfCheck, supervision: Supervision | None, jobs: PendingJobs) -> None:
        """Check by `check`; what counts as slow, and when, says `supervision`."""
        self._check, self._supervision, self._jobs = check, supervision, jobs

    def is_due(self, member: Member) -> bool:
        """Return whether a worker is idle, and was not checked for long."""
        assert self._supervision is not None
        idle = member.state == "up" and not member.pending and not member.checking
        return idle and time.monotonic() - member.checked >= self._supervision.check_seconds

    async def fault_of(self, member: Member) -> Fault | None:
        """Return what is wrong with a worker; None where nothing is.

        Raises `WorkerLostError` where it ends meanwhile.
        """
        port, served = member.port, member.served
        assert served is not None
        job, member.checking = self._check.job(served), True
        try:
            done = await self._jobs.run_on(member, job)
            wrong = self._check.wrong(done.value)
        except WorkerLostError:
            raise
        except Exception as error:
            wrong = f"the check failed: {error!r}"
        if member.port is not port:
            raise WorkerLostError("the worker was lost")
        member.checking, member.checked = False, time.monotonic()
        if wrong is not None:
            return Fault("wrong", f"failed its check: {wrong}")
        if member.state != "starting" and member.pending:  # beside other jobs a check takes longer
            return None
        times = self._check.times_slower(done.run_seconds)
        return None if member.state == "starting" else self._slowness(member, times)

    def _slowness(self, member: Member, times: float) -> Fault | None:
        assert self._supervision is not None
        member.slow_checks = member.slow_checks + 1 if times > self._supervision.slow_factor else 0
        if member.slow_checks < self._supervision.slow_checks:
            return None
        return Fault("slow", f"took {times:.0f} times as long as the fastest check")
