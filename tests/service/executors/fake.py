"""A worker without a model, for threads and processes.

It starts at once. Its answer to a job is a digest, which each unit changes. The first text of a job
may name a fault: see `cause_fault`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abmll.errors import SupportError
from abmll.prediction.settings import PredictSettings
from abmll.text.prompting import EncodedPrompt, LabelledPrompt
from service.executors.contract import (
    GLOBAL,
    AdapterNotHeldError,
    AdaptJob,
    Executor,
    Job,
    Lane,
    PredictJob,
    ServedModel,
    WorkerFatalError,
    lane_of,
)

SERVED: Any = ServedModel("base", "posterior", "digest", {}, None, None)  # type: ignore[arg-type]
TOKENS = 10  # of a text in a unit


@dataclass(frozen=True)
class Steps:
    """Stands in for `AdaptSettings`, which needs torch."""

    steps: int


def adapt_job(text: str = "", steps: int = 3, seed: int = 0) -> AdaptJob:
    example = LabelledPrompt(EncodedPrompt((), text=text), 0)
    name = f"adp_{_hash(f'{text} {steps} {seed}')[:32]}"
    return AdaptJob(name, (example,), Steps(steps), seed)  # type: ignore[arg-type]


def predict_job(text: str = "", samples: int = 3, adapter: str = "adp_1", queries: int = 1) -> PredictJob:
    return PredictJob(adapter, (EncodedPrompt((), text=text),) * queries, PredictSettings(samples))


def adapter_of(job: Job) -> Any:
    """Return the adapter of a job, which is sent to workers that do not hold it."""
    return f"posterior of {job.adapter_id}"


async def predict(executor: Executor, job: PredictJob, **more: Any) -> Any:
    """Return the executor's answer to `job` with its adapter."""
    return await executor.predict(job, adapter_of(job), **more)


def units_of(job: Job) -> int:
    return job.settings.steps if isinstance(job, AdaptJob) else int(job.settings.samples)


def answer(job: Job, units: int | None = None) -> str:
    """Return the digest that any worker must have after `units`, by default after all."""
    digest = _first(job, adapter_of(job) if isinstance(job, PredictJob) else None)
    for unit in range(units_of(job) if units is None else units):
        digest = _next(digest, unit)
    return digest


def _first(job: Job, posterior: Any) -> str:
    if isinstance(job, AdaptJob):
        return _hash(repr(job))
    return _hash(f"{job.adapter_id} {posterior} {job.prompts} {job.settings}")


def _next(digest: str, unit: int) -> str:
    return _hash(f"{digest} {unit}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """Answer to a job, by which process, and whether the adapter was sent with the job."""

    digest: str
    pid: int
    with_adapter: bool


@dataclass(eq=False)
class FakeRun:
    job: Job
    digest: str
    with_adapter: bool = False
    unit: int = 0

    @property
    def lane(self) -> Lane:
        return lane_of(self.job)

    @property
    def text(self) -> str:
        return _text(self.job)

    @property
    def done(self) -> bool:
        return self.unit == units_of(self.job)

    def next_tokens(self) -> int:
        return TOKENS * (1 if isinstance(self.job, AdaptJob) else len(self.job.prompts))

    def result(self) -> Any:
        return Answer(self.digest, os.getpid(), self.with_adapter)

    def partial(self) -> Any:
        """Return the number of units and the digest so far."""
        if "no progress" in self.text:
            raise ValueError("no progress is given")
        return self.unit, self.digest


class FakeWorker:
    """Worker whose units take `unit_seconds`; it holds the `slots` adapters used last."""

    served = SERVED

    def __init__(self, unit_seconds: float = 0.0, slots: int = 2, tokens_per_unit: int = 40) -> None:
        self.unit_seconds, self.slots, self.tokens_per_unit = unit_seconds, slots, tokens_per_unit
        self.adaptations_at_once = 64
        self.posteriors: dict[str, Any] = {}
        self.units: list[list[Job]] = []
        self.leased = 0
        self.cause_fault = cause_fault

    def begin(self, job: Job, adapter: Any = None) -> FakeRun:
        if "refuse" in _text(job):
            raise SupportError("refused")
        if isinstance(job, AdaptJob):
            self.leased += 1
            return FakeRun(job, _first(job, None))
        posterior = self.posteriors.pop(job.adapter_id, None)
        posterior = adapter or posterior or (adapter_of(job) if job.adapter_id == GLOBAL else None)
        if posterior is None:
            raise AdapterNotHeldError(job.adapter_id)
        self.posteriors[job.adapter_id] = posterior
        while len(self.posteriors) > self.slots:
            del self.posteriors[next(iter(self.posteriors))]
        self.leased += 1
        return FakeRun(job, _first(job, posterior), adapter is not None)

    def advance(self, runs: Sequence[FakeRun]) -> None:
        self.units.append([run.job for run in runs])
        for run in runs:
            self.cause_fault(run)
        time.sleep(self.unit_seconds)
        for run in runs:
            run.digest = _next(run.digest, run.unit)
            run.unit += 1

    def finish(self, run: FakeRun) -> None:
        self.leased -= 1

    def held(self) -> Sequence[str]:
        return tuple(self.posteriors)


def _text(job: Job) -> str:
    return job.examples[0].prompt.text if isinstance(job, AdaptJob) else job.prompts[0].text


class UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def cause_fault(run: FakeRun) -> None:
    """Cause the fault that the job's text names, in the second unit of the run.

    With `once <path>`, the fault is caused only if there is no such file yet; it is made then.
    """
    if run.unit != 1 or not run.text:
        return
    what, _, once = run.text.partition(" once ")
    if once:
        if Path(once).exists():
            return
        Path(once).touch()
    match what:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "fatal":
            raise WorkerFatalError("the device is gone")
        case "fail":
            raise ValueError("this run fails")
        case "odd":
            raise UnpicklableError(1, 2)


# ---- loaders, at module level so that a spawned process can import them


def load(unit_seconds: float = 0.0, slots: int = 2) -> FakeWorker:
    return FakeWorker(unit_seconds, slots)


def load_after(path: str) -> FakeWorker:
    """Load when the file is there."""
    while not Path(path).exists():
        time.sleep(0.02)
    return FakeWorker()


def load_never() -> FakeWorker:
    raise FileNotFoundError("no such model")


def load_at_the_second_try(path: str) -> FakeWorker:
    if Path(path).exists():
        return FakeWorker()
    Path(path).touch()
    raise FileNotFoundError("no such model")


def load_another_model(path: str) -> FakeWorker:
    worker = load_after(path)
    worker.served = ServedModel("base", "posterior", "another digest", {}, None, None)  # type: ignore[arg-type]
    return worker
