"""Workers that the pool ends by itself: wrong, slow, grown too large, or asked to start again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from service.executors.contract import PredictJob
from service.executors.loop import WorkerLoop
from service.executors.messages import (
    Beat,
    Cancel,
    Command,
    Done,
    Ended,
    Event,
    Ready,
    Stop,
    Submit,
)
from service.executors.pool import WorkerPool
from service.executors.self_check import SelfCheck
from service.metrics import Metrics
from tests.service.executors.conftest import QUICK, running, until
from tests.service.executors.fake import FakeWorker, adapt_job, answer, predict, predict_job


class OneText(SelfCheck):
    """A check whose answer is a digest: known is that of the first worker."""

    def __init__(self) -> None:
        super().__init__()
        self.known: str | None = None
        self.seconds: list[float] = []

    def job(self, served: Any) -> PredictJob:
        return predict_job("check", samples=1)

    def wrong(self, answers: Any) -> str | None:
        self.known = self.known or answers.digest
        return None if answers.digest == self.known else "another digest"

    def times_slower(self, seconds: float) -> float:
        return self.seconds.pop(0) if self.seconds else 1.0


@dataclass
class Ports:
    """Workers on the event loop: each unit takes `unit_seconds`, and `wrong` ones answer otherwise."""

    unit_seconds: float = 0.0
    wrong: set[int] = field(default_factory=set)
    memory_bytes: int = 100
    made: list[Port] = field(default_factory=list)

    def spawn(self, index: int) -> Port:
        self.made.append(Port(self, index))
        return self.made[-1]


class Port:
    def __init__(self, ports: Ports, index: int) -> None:
        self.ports, self.index, self.number = ports, index, len(ports.made)
        self.loop = WorkerLoop(FakeWorker())
        self.ended = False
        self.stopped_with: int | None = None

    def start(self, emit: Callable[[Event], None]) -> None:
        self.emit = emit
        self.task = asyncio.get_running_loop().create_task(self.work())
        self.events = asyncio.get_running_loop()

    async def work(self) -> None:
        await asyncio.sleep(0.01)
        self.emit(Ready(FakeWorker.served))
        while not self.ended:
            self.emit(Beat(0.0, 1.0, self.ports.memory_bytes))
            for event in () if self.loop.idle else self.loop.turn():
                wrong = isinstance(event, Done) and self.number in self.ports.wrong
                self.emit(replace(event, result=replace(event.result, digest="wrong")) if wrong else event)
            await asyncio.sleep(self.ports.unit_seconds or 0.002)
        self.emit(Ended(None))

    def send(self, command: Command) -> None:
        self.events.call_soon_threadsafe(self.take, command)

    def take(self, command: Command) -> None:
        match command:
            case Submit():
                self.loop.submit(replace(command, adapter=command.adapter or "posterior of adp_1"))
            case Cancel(job_id):
                self.loop.cancel(job_id)
            case Stop():
                self.close()

    def kill(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.stopped_with = len(self.loop._entries)
        self.ended = True


def pool(ports: Ports, workers: int = 2, metrics: Metrics | None = None, **rules: Any) -> WorkerPool:
    rules = {"heartbeat_seconds": 0.02, "silent_beats": 10_000, **rules}
    has_room = rules.pop("has_room", lambda _: False)
    rules_of = replace(QUICK, **rules)
    return WorkerPool(ports.spawn, workers, metrics or Metrics(), rules_of, OneText(), has_room)


def fenced(metrics: Metrics, reason: str) -> float:
    return float(metrics.fenced.labels(reason)._value.get())


async def all_up(executor: WorkerPool) -> None:
    await until(lambda: all(worker.state == "up" for worker in executor.workers()))


def test_a_worker_that_fails_the_check_at_its_start_gets_no_job_and_is_started_again() -> None:
    async def scenario() -> None:
        ports, metrics = Ports(wrong={1}), Metrics()
        executor = pool(ports, 2, metrics)
        async with running(executor):
            await until(lambda: len(ports.made) == 3)
            await all_up(executor)
            assert [worker.restarts for worker in executor.workers()] == [0, 1]
            assert fenced(metrics, "wrong") == 1
            jobs = [predict_job(adapter=f"adp_{n}") for n in range(1)]
            assert [(await predict(executor, job)).value.digest for job in jobs] != ["wrong"]

    asyncio.run(scenario())


def test_an_idle_worker_that_computes_wrongly_is_found_and_replaced() -> None:
    async def scenario() -> None:
        ports, metrics = Ports(), Metrics()
        executor = pool(ports, 1, metrics, check_seconds=0.05)
        async with running(executor):
            await all_up(executor)
            await asyncio.sleep(0.2)
            assert fenced(metrics, "wrong") == 0
            ports.wrong.add(0)
            await until(lambda: fenced(metrics, "wrong") == 1)
            await until(lambda: len(ports.made) == 2)
            await all_up(executor)
            assert (await executor.adapt(adapt_job())).value.digest == answer(adapt_job())

    asyncio.run(scenario())


def test_a_worker_is_slow_after_three_slow_checks_in_a_row() -> None:
    async def scenario() -> None:
        ports, metrics = Ports(), Metrics()
        executor = pool(ports, 1, metrics, check_seconds=0.02)
        assert executor._checks is not None
        check = executor._checks._check
        assert isinstance(check, OneText)
        async with running(executor):
            await all_up(executor)
            check.seconds = [20.0, 20.0, 2.0, 20.0, 20.0]
            await until(lambda: not check.seconds)
            await asyncio.sleep(0.05)
            assert fenced(metrics, "slow") == 0
            check.seconds = [20.0, 20.0, 20.0]
            await until(lambda: fenced(metrics, "slow") == 1)

    asyncio.run(scenario())


def test_a_worker_that_has_too_much_memory_finishes_its_jobs_and_is_started_again() -> None:
    async def scenario() -> None:
        ports, metrics = Ports(unit_seconds=0.01), Metrics()
        executor = pool(ports, 1, metrics, most_memory_bytes=1000)
        async with running(executor):
            job = adapt_job(steps=20)
            running_job = asyncio.create_task(executor.adapt(job))
            await asyncio.sleep(0.05)
            ports.memory_bytes = 2000
            await until(lambda: executor.workers()[0].state == "draining")
            waiting = asyncio.create_task(executor.adapt(adapt_job(steps=2)))
            ports.memory_bytes = 100
            assert (await running_job).value.digest == answer(job)
            assert (await waiting).value.digest == answer(adapt_job(steps=2))
            assert ports.made[0].stopped_with == 0
            assert (fenced(metrics, "memory"), metrics.replays._value.get()) == (1, 0)
            assert "abmll_worker_memory_bytes" in metrics.render().decode()

    asyncio.run(scenario())


def test_a_worker_is_started_again_after_so_many_jobs_and_checks_do_not_count() -> None:
    async def scenario() -> None:
        ports, metrics = Ports(), Metrics()
        executor = pool(ports, 1, metrics, most_jobs=3)
        async with running(executor):
            for seed in range(7):
                job = adapt_job(seed=seed)
                assert (await executor.adapt(job)).value.digest == answer(job)
            await until(lambda: len(ports.made) == 3)
            assert fenced(metrics, "requests") == 2

    asyncio.run(scenario())


def test_a_rolling_restart_loses_no_job_and_leaves_one_worker_up() -> None:
    async def scenario() -> None:
        ports, metrics = Ports(), Metrics()
        executor = pool(ports, 3, metrics)
        async with running(executor):
            await all_up(executor)
            answered, stop, fewest = 0, False, 3

            async def client(number: int) -> None:
                nonlocal answered
                serial = 0
                while not stop:
                    job = adapt_job(steps=2, seed=1000 * number + serial)
                    assert (await executor.adapt(job)).value.digest == answer(job)
                    serial, answered = serial + 1, answered + 1

            async def watching() -> None:
                nonlocal fewest
                while not stop:
                    fewest = min(fewest, sum(worker.state == "up" for worker in executor.workers()))
                    await asyncio.sleep(0.002)

            clients = [asyncio.create_task(client(number)) for number in range(6)]
            seen = asyncio.create_task(watching())
            await asyncio.sleep(0.1)
            await executor.restart()
            stop = True
            await asyncio.gather(*clients, seen)
            assert [worker.restarts for worker in executor.workers()] == [1, 1, 1]
            assert (fewest, metrics.replays._value.get()) == (2, 0)
            assert answered > 20

    asyncio.run(scenario())


@pytest.mark.parametrize("killed", [False, True])
def test_an_only_worker_goes_once_the_next_one_is_up_where_there_is_room(killed: bool) -> None:
    async def scenario() -> None:
        ports, metrics, asked = Ports(), Metrics(), list[int]()
        executor = pool(ports, 1, metrics, has_room=lambda size: not asked.append(size))
        async with running(executor):
            await all_up(executor)
            await until(lambda: executor.workers()[0].memory_bytes == 100)
            done, gaps, stop = 0, 0, False

            async def client(number: int) -> None:
                nonlocal done
                while not stop:
                    job = adapt_job(steps=2, seed=10_000 * number + done)
                    assert (await executor.adapt(job)).value.digest == answer(job)
                    done += 1

            async def watching() -> None:
                nonlocal gaps
                while not stop:
                    gaps += not any(worker.state == "up" for worker in executor.workers())
                    await asyncio.sleep(0)

            tasks = [asyncio.create_task(work) for work in (client(1), client(2), watching())]
            for number in range(3):
                before = done
                await until(lambda before=before: done > before)
                restarting = asyncio.create_task(executor.restart())
                if killed and number == 1:  # while the next one loads
                    await until(lambda: len(executor.workers()) == 2)
                    ports.made[-2].kill()
                await restarting
                await until(lambda: len(executor.workers()) == 1)
                await all_up(executor)
            stop = True
            await asyncio.gather(*tasks)
            assert killed or (gaps, metrics.replays._value.get()) == (0, 0)
            assert (asked, executor.workers()[0].restarts) == ([100] * 3, 3)
            assert 'abmll_worker_up{worker="0"} 1.0' in metrics.render().decode()

    asyncio.run(scenario())


def test_an_only_worker_stays_where_the_next_one_cannot_be_started() -> None:
    async def scenario() -> None:
        ports, metrics = Ports(wrong={1}), Metrics()
        executor = pool(ports, 1, metrics, has_room=lambda _: True)
        async with running(executor):
            await all_up(executor)
            await executor.restart()
            assert [worker.state for worker in executor.workers()] == ["up"]
            assert (len(ports.made), ports.made[0].ended) == (2, False)
            assert (await executor.adapt(adapt_job())).value.digest == answer(adapt_job())
            await executor.restart()
            assert (len(ports.made), ports.made[0].ended) == (3, True)
            assert (await executor.adapt(adapt_job())).value.digest == answer(adapt_job())

    asyncio.run(scenario())


def test_what_takes_longer_than_a_worker_has_to_leave_begins_again_and_is_no_suspect() -> None:
    async def scenario() -> None:
        ports, metrics = Ports(unit_seconds=0.005), Metrics()
        executor = pool(ports, 1, metrics, leave_seconds=0.05)
        async with running(executor):
            job = adapt_job(steps=60)
            waiting = asyncio.create_task(executor.adapt(job))
            for _ in range(3):
                await asyncio.sleep(0.05)
                await executor.restart()
            assert (await waiting).value.digest == answer(job)
            assert metrics.replays._value.get() == 0

    asyncio.run(scenario())


def test_a_limit_of_memory_that_is_too_low_does_not_restart_without_end() -> None:
    async def scenario() -> None:
        ports = Ports(memory_bytes=2000)
        rules = {"most_memory_bytes": 1000, "first_wait_seconds": 0.2, "longest_wait_seconds": 60.0}
        executor = pool(ports, 1, **rules)
        async with running(executor):
            await asyncio.sleep(1.0)
            assert 2 <= len(ports.made) <= 4

    asyncio.run(scenario())


@dataclass(frozen=True)
class Row:
    probabilities: Sequence[float]

    @property
    def predictive(self) -> Row:
        return self


def test_known_answers_are_those_of_the_first_healthy_worker() -> None:
    check = SelfCheck()
    assert check.wrong([Row((float("nan"), 0.5))]) == "a probability is no finite number"  # type: ignore[list-item]
    assert "do not sum to 1" in str(check.wrong([Row((0.5, 0.6))]))  # type: ignore[list-item]
    assert check.wrong([Row((0.7, 0.3))]) is None  # type: ignore[list-item]
    assert check.wrong([Row((0.69, 0.31))]) is None  # type: ignore[list-item]
    assert check.wrong([Row((0.6, 0.4))]) == "a probability differs by 0.100 from a known one"  # type: ignore[list-item]
    assert [check.times_slower(seconds) for seconds in (0.1, 1.0, 0.05, 1.0)] == pytest.approx([1, 10, 1, 20])


def test_a_first_worker_that_fails_its_check_is_why_the_server_does_not_start() -> None:
    class Never(OneText):
        def wrong(self, answers: Any) -> str | None:
            return "nonsense"

    async def scenario() -> None:
        executor = WorkerPool(Ports().spawn, 1, Metrics(), QUICK, Never())
        with pytest.raises(RuntimeError, match="failed its check: nonsense"):
            await executor.start()
        await executor.close()

    asyncio.run(scenario())
