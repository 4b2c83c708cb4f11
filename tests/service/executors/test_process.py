"""Worker processes that crash, hang or stop: their jobs are done all the same."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.errors import WorkerLostError
from service.executors.child import NICENESS
from service.executors.contract import DEFAULT_TENANT, WorkerStatus, in_background
from service.executors.placement import SPILL_JOBS, place, preferred
from service.executors.pool import WorkerPool
from service.executors.process import process_executor
from service.executors.supervision import Supervision
from service.metrics import Metrics
from tests.service.executors.conftest import QUICK, make, running, slow_load, until, worker_processes
from tests.service.executors.fake import (
    adapt_job,
    answer,
    load,
    load_after,
    load_another_model,
    load_at_the_second_try,
    load_never,
    predict,
    predict_job,
)


def states(executor: WorkerPool) -> list[str]:
    return [worker.state for worker in executor.workers()]


@pytest.mark.parametrize("fate", ["crash", "hang", "stop", "fatal"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_survives_the_loss_of_its_worker_with_the_same_answer(
    tmp_path: Path, fate: str, workers: int
) -> None:
    """Another worker does it, or the same one after a restart."""

    async def scenario() -> None:
        metrics = Metrics()
        executor = make("process", [load] * workers, metrics)
        async with running(executor):
            job = predict_job(f"{fate} once {tmp_path / 'happened'}", samples=4)
            assert (await predict(executor, job)).value.digest == answer(job)
            assert b"abmll_replays_total 1.0" in metrics.render()
            await until(lambda: states(executor) == ["up"] * workers)
            assert sum(worker.restarts for worker in executor.workers()) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_of_a_job_that_is_done_anew_begins_again_and_ends_in_the_same_answer(
    tmp_path: Path, workers: int
) -> None:
    async def scenario() -> None:
        executor = make("process", [load] * workers)
        async with running(executor):
            seen: list[Any] = []
            job = predict_job(f"crash once {tmp_path / 'happened'}", samples=4)
            done = await predict(executor, job, on_progress=seen.append)
            # The first worker ends in the second unit; its event of the first one may be lost.
            assert [unit for unit, _ in seen] in ([1, 1, 2, 3], [1, 2, 3])
            assert all(digest == answer(job, unit) for unit, digest in seen)
            assert done.value.digest == answer(job)

    asyncio.run(scenario())


def test_a_job_that_takes_two_workers_down_is_refused_and_the_rest_goes_on() -> None:
    async def scenario() -> None:
        executor = make("process", [load] * 2)
        async with running(executor):
            fine = [predict_job(samples=3, adapter=f"adp_{n}") for n in range(8)]
            others = [asyncio.create_task(predict(executor, job)) for job in fine]
            with pytest.raises(WorkerLostError):
                await executor.adapt(adapt_job("crash", steps=3))
            done = await asyncio.gather(*others, return_exceptions=True)
            for job, outcome in zip(fine, done, strict=True):
                # A job that was in work beside it twice may have been the cause as well.
                assert isinstance(outcome, WorkerLostError) or outcome.value.digest == answer(job)
            await until(lambda: states(executor) == ["up", "up"])
            assert (await predict(executor, fine[0])).value.digest == answer(fine[0])

    asyncio.run(scenario())


def test_what_has_not_begun_is_no_suspect_and_moves_as_often_as_it_must() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        executor = make("process", [partial(load, 1.0)], metrics)

        def works(restarts: int) -> bool:
            began = len(metrics.gateway.occupancy().running)
            return executor.workers()[0] == WorkerStatus("0", "up", restarts, 2) and began == 1

        async with running(executor):
            first = asyncio.create_task(predict(executor, predict_job(samples=2, queries=4)))
            job = predict_job(samples=1, queries=4)  # no room for both in one unit
            behind = asyncio.create_task(predict(executor, job))
            for restarts in range(2):
                await until(partial(works, restarts))
                worker_processes()[0].kill()
            with pytest.raises(WorkerLostError):
                await first
            assert (await behind).value.digest == answer(job)
            assert b"abmll_replays_total 1.0" in metrics.render()

    asyncio.run(scenario())


def test_twenty_kills_under_load_lose_nothing_and_change_no_answer() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        executor = make("process", [partial(load, 0.005)] * 2, metrics)
        generator = random.Random(0)
        kills = 0
        answered = 0
        stop = False

        async def client(number: int) -> None:
            nonlocal answered
            serial = 0
            while not stop:
                serial += 1
                job = (
                    adapt_job(steps=3, seed=1000 * number + serial)
                    if serial % 3 == 0
                    else predict_job(samples=1 + serial % 5, adapter=f"adp_{(number + serial) % 5}")
                )
                while True:
                    try:
                        run = executor.adapt if serial % 3 == 0 else partial(predict, executor)
                        timed = await run(job)  # type: ignore[arg-type, operator]
                    except WorkerLostError:  # its worker was killed twice; a client sends it again
                        continue
                    break
                assert timed.value.digest == answer(job)
                answered += 1

        async with running(executor):
            clients = [asyncio.create_task(client(number)) for number in range(8)]
            while kills < 20:
                await asyncio.sleep(0.05)
                await until(lambda before=answered: answered > before)
                victims = worker_processes()
                if victims:
                    generator.choice(victims).kill()
                    kills += 1
            stop = True
            await asyncio.gather(*clients)
            assert answered > 20
            assert sum(worker.jobs for worker in executor.workers()) == 0
        assert worker_processes() == []

    asyncio.run(scenario())


def test_start_needs_one_worker_and_the_others_join_as_they_load(tmp_path: Path) -> None:
    async def scenario() -> None:
        executor = make("process", [partial(load_after, str(tmp_path / "go")), load])
        async with running(executor):
            assert states(executor) == ["starting", "up"]
            (tmp_path / "go").touch()
            await until(lambda: states(executor) == ["up", "up"])
            jobs = [predict_job(adapter=f"adp_{n}") for n in range(20)]
            done = await asyncio.gather(*(predict(executor, job) for job in jobs))
            assert len({timed.value.pid for timed in done}) == 2

    asyncio.run(scenario())


def test_a_worker_that_cannot_be_loaded_is_tried_again_while_another_serves(tmp_path: Path) -> None:
    async def scenario() -> None:
        executor = make("process", [load, partial(load_at_the_second_try, str(tmp_path / "tried"))])
        async with running(executor):
            await until(lambda: states(executor) == ["up", "up"])
            assert executor.workers()[1] == WorkerStatus("1", "up", 1, 0)

    asyncio.run(scenario())


def test_a_worker_that_began_early_is_the_one_that_serves() -> None:
    async def scenario() -> None:
        executor = process_executor([load], supervision=QUICK, early=True)
        (early,) = worker_processes()
        async with running(executor):
            assert (await predict(executor, predict_job())).value.pid == early.pid
            early.kill()
            await until(lambda: states(executor) != ["up"])
            await until(lambda: states(executor) == ["up"])
            assert (await predict(executor, predict_job())).value.pid != early.pid

    asyncio.run(scenario())


def test_workers_that_all_cannot_be_loaded_fail_the_start() -> None:
    async def scenario() -> None:
        executor = make("process", [load_never, load_never])
        with pytest.raises(FileNotFoundError, match="no such model"):
            await executor.start()
        await executor.close()
        assert worker_processes() == []

    asyncio.run(scenario())


def test_a_worker_that_loads_another_model_gets_no_work(tmp_path: Path) -> None:
    async def scenario() -> None:
        executor = make("process", [load, partial(load_another_model, str(tmp_path / "go"))])
        async with running(executor):
            (tmp_path / "go").touch()
            await until(lambda: executor.workers()[1].restarts > 1)
            assert states(executor)[0] == "up"
            assert states(executor)[1] != "up"

    asyncio.run(scenario())


def test_without_any_worker_jobs_wait_for_one() -> None:
    async def scenario() -> None:
        executor = make("process", [load])
        async with running(executor):
            worker_processes()[0].kill()
            await until(lambda: states(executor) != ["up"])
            job = predict_job()
            assert (await predict(executor, job)).value.digest == answer(job)

    asyncio.run(scenario())


def test_restarts_back_off_up_to_a_cap() -> None:
    supervision = Supervision()
    waits = [supervision.wait_seconds(losses) for losses in (1, 2, 3, 7, 8, 1000)]
    assert waits == [0.25, 0.5, 1.0, 16.0, 30.0, 30.0]


def test_an_adapter_stays_with_its_worker_until_that_one_has_much_more_to_do() -> None:
    workers = {str(n): 0 for n in range(5)}
    homes = {key: preferred(key, workers) for key in map(str, range(200))}
    assert set(homes.values()) == set(workers)
    assert all(place(key, workers) == home for key, home in homes.items())
    without = {name: jobs for name, jobs in workers.items() if name != "3"}
    moved = [key for key, home in homes.items() if place(key, without) != home]
    assert {homes[key] for key in moved} == {"3"}
    busy = {**workers, homes["0"]: SPILL_JOBS}
    assert place("0", busy) == homes["0"]
    assert place("0", {**workers, homes["0"]: SPILL_JOBS + 1}) != homes["0"]


def test_predictions_with_one_adapter_go_to_one_worker() -> None:
    async def scenario() -> None:
        executor = make("process", [load] * 2)
        async with running(executor):
            await until(lambda: states(executor) == ["up", "up"])
            pids = {(await predict(executor, predict_job(adapter="adp_7"))).value.pid for _ in range(5)}
            assert len(pids) == 1

    asyncio.run(scenario())


def test_a_worker_stands_back_behind_the_server() -> None:
    async def scenario() -> None:
        async with running(make("process", [load])):
            (worker,) = worker_processes()
            assert worker.nice() == min(19, psutil.Process().nice() + NICENESS)

    asyncio.run(scenario())


def test_jobs_of_a_batch_go_to_every_worker() -> None:
    """A batch with one adapter had one worker before, however many there were."""

    async def scenario() -> None:
        executor = make("process", [slow_load] * 2)
        async with running(executor):
            await until(lambda: states(executor) == ["up", "up"])
            job = predict_job(adapter="adp_7")
            tenant = in_background(DEFAULT_TENANT)
            answers = await asyncio.gather(*(predict(executor, job, tenant=tenant) for _ in range(4)))
            assert len({found.value.pid for found in answers}) == 2
            assert {found.value.digest for found in answers} == {answer(job)}

    asyncio.run(scenario())


def test_workers_ignore_the_signals_of_the_group_and_end_by_command() -> None:
    async def scenario() -> None:
        executor = make("process", [slow_load])
        async with running(executor):
            job = adapt_job(steps=10)
            working = asyncio.create_task(executor.adapt(job))
            await asyncio.sleep(0.05)
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker_processes()[0].pid, number)
            assert (await working).value.digest == answer(job)
            assert executor.workers()[0].restarts == 0

    asyncio.run(scenario())


def serving(unit_seconds: float, stay_seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.service.executors.serving", str(unit_seconds), str(stay_seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("end", ["killed", "left"])
def test_no_worker_outlives_the_server_however_it_ends(end: str) -> None:
    """The server is killed, or ends without `close`, while workers are in a long unit."""
    with serving(30, 0 if end == "left" else 30) as server:
        pids = [int(pid) for pid in server.stdout.readline().split()]
        assert len(pids) == 2
        if end == "killed":
            server.kill()
        assert server.wait(10) == (-signal.SIGKILL if end == "killed" else 0)
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def test_a_server_that_was_stopped_itself_blames_no_worker() -> None:
    """By time, more than ten heartbeats are missing; by count, none is."""
    with serving(0.01, 2.5) as server:
        assert len(server.stdout.readline().split()) == 2
        server.send_signal(signal.SIGSTOP)
        time.sleep(2)
        server.send_signal(signal.SIGCONT)
        assert server.stdout.readline() == "[0, 0]\n"
