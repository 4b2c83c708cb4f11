"""Actors of Ray on this machine: what happens when they are lost."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from service.errors import WorkerLostError
from service.executors.contract import GLOBAL, AdaptJob, Job, PredictJob
from service.executors.pool import WorkerPool
from service.executors.self_check import SelfCheck
from service.metrics import Metrics
from tests.service.executors.conftest import QUICK, actor_processes, make, running, slow_load, until
from tests.service.executors.fake import adapt_job, answer, load, predict, predict_job
from tests.service.executors.tiny_worker import load_tiny, tiny_jobs

ray = pytest.importorskip("ray")
from service.executors.ray import ray_executor  # noqa: E402 - an extra

slow = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("ray_cluster")


async def up(executor: WorkerPool, workers: int) -> None:
    await until(lambda: [worker.state for worker in executor.workers()].count("up") == workers)


async def run(executor: WorkerPool, job: Job) -> Any:
    return await (executor.adapt(job) if isinstance(job, AdaptJob) else predict(executor, job))


def faulty(lane: str, text: str) -> Job:
    return adapt_job(text, steps=4) if lane == "adapt" else predict_job(text, samples=4)


@pytest.mark.parametrize("lane", ["adapt", pytest.param("predict", marks=slow)])
@pytest.mark.parametrize("fate", ["crash", *(pytest.param(f, marks=slow) for f in ("fatal", "hang", "stop"))])
def test_a_job_survives_the_loss_of_its_actor_with_the_same_answer(
    tmp_path: Path, lane: str, fate: str
) -> None:
    """`crash` is SIGKILL in the middle of the job, and `stop` is SIGSTOP."""

    async def scenario() -> None:
        metrics = Metrics()
        executor = make("ray-2", metrics=metrics)
        async with running(executor):
            job = faulty(lane, f"{fate} once {tmp_path / 'happened'}")
            assert (await run(executor, job)).value.digest == answer(job)
            assert (tmp_path / "happened").exists()
            assert b"abmll_replays_total 1.0" in metrics.render()
            await up(executor, 2)
            assert sum(worker.restarts for worker in executor.workers()) == 1

    asyncio.run(scenario())


def test_an_actor_that_ray_kills_is_replaced_and_its_jobs_are_done() -> None:
    async def scenario() -> None:
        executor = make("ray-1", [slow_load])
        async with running(executor):
            jobs = [predict_job(samples=10, adapter="adp_1"), adapt_job(steps=10)]
            doing = [asyncio.create_task(run(executor, job)) for job in jobs]
            await asyncio.sleep(0.1)
            ray.kill(executor._members.all[0].port._actor.result())  # type: ignore[union-attr]
            assert [(await task).value.digest for task in doing] == list(map(answer, jobs))
            assert executor.workers()[0].restarts == 1

    asyncio.run(scenario())


def test_an_actor_is_checked_and_started_again_after_its_job() -> None:
    class OneDigest(SelfCheck):
        asked = 0

        def job(self, served: Any) -> PredictJob:
            self.asked += 1
            return predict_job("check", samples=1, adapter=GLOBAL)

        def wrong(self, answers: Any) -> str | None:
            return (
                None
                if answers.digest == answer(predict_job("check", samples=1, adapter=GLOBAL))
                else "another digest"
            )

    async def scenario() -> None:
        check = OneDigest()
        executor = ray_executor([slow_load], supervision=QUICK, check=check)
        async with running(executor):
            job = predict_job(samples=10)
            doing = asyncio.create_task(predict(executor, job))
            await until(lambda: executor.workers()[0].memory_bytes is not None)
            await executor.restart()
            assert (await doing).value.digest == answer(job)
            assert [(w.state, w.restarts) for w in executor.workers()] == [("up", 1)]
            assert check.asked == 2
            assert (await predict(executor, predict_job("new"))).value.digest == answer(predict_job("new"))

    asyncio.run(scenario())


def test_a_job_that_takes_two_actors_down_is_refused() -> None:
    """An actor's last event must not be lost with it: otherwise the job would take every actor
    down.
    """

    async def scenario() -> None:
        executor = make("ray-2")
        async with running(executor):
            with pytest.raises(WorkerLostError):
                await executor.adapt(adapt_job("crash", steps=3))
            job = predict_job()
            assert (await predict(executor, job)).value.digest == answer(job)

    asyncio.run(scenario())


@slow
def test_fifty_kills_under_load_lose_nothing_and_change_no_answer() -> None:
    async def scenario() -> None:
        executor = make("ray-4", [partial(load, 0.005)])
        generator = random.Random(0)
        kills = answered = 0
        stop = False

        async def client(number: int) -> None:
            nonlocal answered
            serial = 0
            while not stop:
                serial += 1
                seed = 1000 * number + serial
                job: Job = adapt_job(seed=seed) if serial % 3 == 0 else predict_job(adapter=f"adp_{seed % 5}")
                try:
                    timed = await run(executor, job)
                except WorkerLostError:  # its worker was killed twice; a client sends it again
                    timed = await run(executor, job)
                assert timed.value.digest == answer(job)
                answered += 1

        await executor.start()
        try:
            clients = [asyncio.create_task(client(number)) for number in range(8)]
            while kills < 50:
                # Else a fast machine kills workers faster than Ray starts them, and nothing is left.
                await until(lambda: [worker.state for worker in executor.workers()].count("up") >= 2)
                await asyncio.sleep(0.2)
                await until(lambda before=answered: answered > before)
                if victims := actor_processes():
                    generator.choice(victims).kill()
                    kills += 1
            await up(executor, 4)
            stop = True
            await asyncio.gather(*clients)
            assert sum(worker.restarts for worker in executor.workers()) >= 40
        finally:
            await executor.close()

    asyncio.run(scenario())


@slow
def test_every_transport_gives_the_same_tensors() -> None:
    """Posteriors and probabilities of a real model are the same as those of the inline worker."""

    async def results(transport: str) -> tuple[Any, Any]:
        executor = make(transport, [load_tiny])
        adapting, predicting = tiny_jobs()
        await executor.start()
        try:
            adapter = (await executor.adapt(adapting)).value.posterior
            return adapter, (await executor.predict(predicting, adapter)).value
        finally:
            await executor.close()

    adapter, predictions = asyncio.run(results("inline"))
    for transport in ("process", "ray-2"):
        other, others = asyncio.run(results(transport))
        torch.testing.assert_close(other.values, adapter.values)
        assert len(others) == len(predictions) == 4
        for one, two in zip(others, predictions, strict=True):
            assert one.predictive.probabilities == pytest.approx(two.predictive.probabilities, abs=1e-6)


SERVING = """
import asyncio, sys
from functools import partial
from service.executors.ray import ray_executor
from tests.service.executors.conftest import actor_processes, until
from tests.service.executors.fake import adapt_job, load

async def main():
    executor = ray_executor([partial(load, 30.0)] * 2)
    await executor.start()
    await until(lambda: [worker.state for worker in executor.workers()] == ["up", "up"])
    jobs = [asyncio.create_task(executor.adapt(adapt_job(seed=seed))) for seed in range(8)]
    await asyncio.sleep(0.5)
    print(*(process.pid for process in actor_processes()), flush=True)
    await asyncio.sleep(float(sys.argv[1]))

asyncio.run(main())
"""


@slow
@pytest.mark.parametrize("end", ["killed", "left"])
def test_no_actor_outlives_the_server_however_it_ends(end: str) -> None:
    command = [sys.executable, "-c", SERVING, "60" if end == "killed" else "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        assert len(pids) == 2
        if end == "killed":
            server.kill()
        server.wait(60)
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
