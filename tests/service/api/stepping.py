"""A worker that waits for its turns, and streams that are read event by event."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from abmll.posterior.posteriors import TaskPosterior
from service.executors.contract import AdaptJob, Job
from tests.service.conftest import Listening
from tests.service.fakes import FakeRun, FakeWorker

SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
CREATE: dict[str, Any] = {"support": SUPPORT, "options": ["yes", "no"]}
BODY: dict[str, Any] = {**CREATE, "inputs": ["fine", "awful", "so so"]}
EVENTS = {"step", "adapter", "refinement", "prediction", "done", "error"}
DIFFER = ("cache", "timings", "request_id")  # these differ when a request is repeated


@dataclass(eq=False)
class SteppedRun(FakeRun):
    units: int = 0

    @property
    def done(self) -> bool:
        return self.units > 0 and self.units == max(self.needs())

    def needs(self) -> Sequence[int]:
        """Return the units that the adaptation, or each query, takes.

        With `auto`, query n takes n units.
        """
        if isinstance(self.job, AdaptJob):
            return [self.job.settings.steps]
        if self.job.settings.samples == "auto":
            return range(1, len(self.job.prompts) + 1)
        return [max(1, -(-self.job.settings.samples // 8))] * len(self.job.prompts)


class SteppedWorker(FakeWorker):
    """Worker whose units are eight samples, or a gradient step.

    A unit acquires `turns`, which do not run out unless a test replaces them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turns = threading.Semaphore(10**6)
        self.unfinished = 0
        self.progress_calls = 0

    def begin(self, job: Job, adapter: TaskPosterior | None = None) -> SteppedRun:
        self.unfinished += 1
        worker = self

        class Run(SteppedRun):
            def partial(self) -> Any:
                worker.progress_calls += 1
                return worker.partial(self)

            def result(self) -> Any:
                return worker._adapt(self.job) if self.lane == "adapt" else worker.partial(self)

        return Run(job, adapter)

    def advance(self, runs: Sequence[SteppedRun]) -> None:
        assert self.turns.acquire(timeout=30)
        if self.fail:
            raise self.fail
        for run in runs:
            run.units += 1

    def finish(self, run: FakeRun) -> None:
        self.unfinished -= 1

    def partial(self, run: SteppedRun) -> Any:
        if isinstance(run.job, AdaptJob):
            return [1.0 / (step + 1) for step in range(run.units)]
        found = []
        for query, need in zip(run.job.prompts, run.needs(), strict=True):
            drawn = 8 * min(run.units, need)
            samples = drawn if run.job.settings.samples == "auto" else min(drawn, run.job.settings.samples)
            prediction = self._predict(
                replace(run.job, settings=replace(run.job.settings, samples=samples)), run.adapter, query
            )
            found.append(replace(prediction, settled=run.units >= need))
        return found


@dataclass(frozen=True)
class Event:
    name: str
    data: Any


def read(lines: Iterator[str]) -> Iterator[Event]:
    """Yield the events of a stream, without comments."""
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            assert name not in fields
            fields[name] = value
        elif not line and fields:
            assert fields["event"] in EVENTS
            yield Event(fields["event"], json.loads(fields["data"]))
            fields = {}


@contextlib.contextmanager
def streaming_from(running: Listening, body: dict[str, Any]) -> Iterator[Iterator[Event]]:
    with httpx.stream(
        "POST", f"{running.url}/v1/predict", json={**body, "stream": True}, timeout=60
    ) as response:
        assert response.status_code == 200, response.read()
        yield read(response.iter_lines())


def stream(running: Listening, body: dict[str, Any]) -> list[Event]:
    with streaming_from(running, body) as events:
        return list(events)


def unstreamed(running: Listening, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(f"{running.url}/v1/predict", json=body, timeout=60)
    assert response.status_code == 200
    return dict(response.json())


def whole(events: list[Event]) -> dict[str, Any]:
    """Return the answer that the events add up to."""
    last = {event.data["index"]: event.data for event in events if event.name == "prediction"}
    return {**events[-1].data, "predictions": [last[index] for index in sorted(last)]}


def lasting(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in DIFFER}
