"""Tests of every transport: a thread, processes, and actors of Ray."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from abmll.errors import SupportError
from service.errors import DeadlineExceededError
from service.executors.contract import AdapterNotHeldError, AdaptJob
from service.metrics import Metrics
from tests.service.executors.conftest import (
    actor_processes,
    make,
    running,
    slow_load,
    until,
    worker_processes,
)
from tests.service.executors.fake import (
    SERVED,
    adapt_job,
    answer,
    load,
    load_never,
    predict,
    predict_job,
    units_of,
)

slow = pytest.mark.slow
transports = pytest.mark.parametrize(
    "transport", ["inline", "process", "ray-2", pytest.param("ray-4", marks=slow)]
)
# An actor takes a second to start, so most of these run with Ray only where slow tests do.
transports_and_slow_ray = pytest.mark.parametrize(
    "transport",
    ["inline", "process", pytest.param("ray-2", marks=slow), pytest.param("ray-4", marks=slow)],
)
with_one_worker = pytest.mark.parametrize(
    "transport", ["inline", "process", pytest.param("ray-1", marks=slow)]
)


def units(metrics: Metrics) -> float:
    """Return the number of units that were run."""
    lines = metrics.render().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("abmll_unit_seconds_count{"))


@transports
def test_many_jobs_at_a_time_get_their_answers(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport)
        async with running(executor):
            assert "up" in [worker.state for worker in executor.workers()]
            adapts = [adapt_job(steps=1 + n % 4, seed=n) for n in range(20)]
            predicts = [predict_job(samples=1 + n % 5, adapter=f"adp_{n % 4}") for n in range(20)]
            done = await asyncio.gather(
                *map(executor.adapt, adapts), *(predict(executor, job) for job in predicts)
            )
            assert [timed.value.digest for timed in done] == list(map(answer, [*adapts, *predicts]))
            assert all(timed.queue_seconds >= 0 and timed.run_seconds >= 0 for timed in done)
            assert sum(worker.jobs for worker in executor.workers()) == 0

    asyncio.run(scenario())


@transports_and_slow_ray
def test_start_gives_the_served_model_and_raises_what_loading_raised(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport)
        assert await executor.start() == SERVED
        await executor.close()
        broken = make(transport, [load_never])
        with pytest.raises(FileNotFoundError, match="no such model"):
            await broken.start()
        await broken.close()

    asyncio.run(scenario())


@transports
def test_errors_keep_their_type_and_leave_the_worker_well(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport)
        async with running(executor):
            with pytest.raises(SupportError, match="refused"):
                await executor.adapt(adapt_job("refuse"))
            with pytest.raises(ValueError, match="this run fails"):
                await predict(executor, predict_job("fail"))
            with pytest.raises(Exception, match="1 and 2"):  # an error that does not pickle
                await predict(executor, predict_job("odd"))
            assert (await executor.adapt(adapt_job())).value.digest == answer(adapt_job())

    asyncio.run(scenario())


@transports_and_slow_ray
def test_an_awaiter_that_leaves_ends_its_job_at_the_next_unit(transport: str) -> None:
    async def scenario() -> None:
        metrics = Metrics()
        executor = make(transport, [slow_load], metrics)
        async with running(executor):
            leaving = asyncio.create_task(executor.adapt(adapt_job(steps=10_000)))
            await until(lambda: units(metrics) > 0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert b'abmll_lane_jobs{lane="adapt"} 0.0' in metrics.render()
            await asyncio.sleep(0.3)  # for the unit that is running; one takes 0.02 s
            before = units(metrics)
            await asyncio.sleep(0.2)
            assert units(metrics) == before
            assert (await executor.adapt(adapt_job())).value.digest == answer(adapt_job())

    asyncio.run(scenario())


@transports_and_slow_ray
def test_a_job_is_not_awaited_beyond_its_deadline(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport, [slow_load])
        async with running(executor):
            with pytest.raises(DeadlineExceededError):
                await executor.adapt(adapt_job(steps=10_000), deadline=0.1)
            in_time = await predict(executor, predict_job(samples=2), deadline=10)
            assert in_time.value.digest == answer(predict_job(samples=2))

    asyncio.run(scenario())


@transports_and_slow_ray
def test_a_short_prediction_is_answered_during_a_long_adaptation(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport, [slow_load])
        async with running(executor):
            long = asyncio.create_task(executor.adapt(adapt_job(steps=10_000)))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(5):
                await predict(executor, predict_job(samples=4))
            assert not long.done()
            long.cancel()

    asyncio.run(scenario())


@transports_and_slow_ray
def test_a_light_tenant_is_answered_before_a_heavy_one_is_through(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport, [slow_load])
        async with running(executor):
            heavy = [
                asyncio.create_task(predict(executor, predict_job(samples=20, queries=4), tenant="heavy"))
                for _ in range(10)
            ]
            await asyncio.sleep(0.05)
            await predict(executor, predict_job(samples=4), tenant="light")
            assert not any(task.done() for task in heavy)
            for task in heavy:
                task.cancel()

    asyncio.run(scenario())


@with_one_worker
def test_an_adapter_goes_to_a_worker_once_and_again_when_the_worker_has_dropped_it(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport, [partial(load, 0.0, 1)])
        async with running(executor):
            came = [
                (await predict(executor, predict_job(adapter=adapter))).value.with_adapter
                for adapter in ("adp_1", "adp_1", "adp_2", "adp_1")
            ]
            assert came == [True, False, True, True]
            # Both jobs of adp_1 go without it; the second finds it dropped, and is sent again.
            jobs = [predict_job(adapter="adp_1"), predict_job(adapter="adp_2"), predict_job(adapter="adp_1")]
            done = await asyncio.gather(*(predict(executor, job) for job in jobs))
            assert [timed.value.digest for timed in done] == list(map(answer, jobs))

    asyncio.run(scenario())


@transports_and_slow_ray
def test_an_adapter_that_nobody_has_is_an_error(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport)
        async with running(executor):
            with pytest.raises(AdapterNotHeldError) as refused:
                await executor.predict(predict_job(adapter="adp_9"), None)  # type: ignore[arg-type]
            assert refused.value.adapter_id == "adp_9"

    asyncio.run(scenario())


@with_one_worker
def test_units_are_counted_with_their_occupancy(transport: str) -> None:
    async def scenario() -> None:
        metrics = Metrics()
        executor = make(transport, [load], metrics)
        async with running(executor):
            await executor.adapt(adapt_job(steps=3))
            await predict(executor, predict_job(samples=2, queries=4))
            for line in (
                'abmll_unit_seconds_count{lane="adapt"} 3.0',
                'abmll_unit_runs_sum{lane="adapt"} 3.0',
                'abmll_unit_tokens_sum{lane="predict"} 80.0',
                'abmll_worker_up{worker="0"} 1.0',
            ):
                assert line in metrics.render().decode().splitlines()

    asyncio.run(scenario())


@transports_and_slow_ray
def test_close_drops_what_runs_and_leaves_nothing_behind(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport, [slow_load])
        await executor.start()
        job = asyncio.create_task(executor.adapt(adapt_job(steps=10_000)))
        await asyncio.sleep(0.1)
        await executor.close()
        with pytest.raises(asyncio.CancelledError):
            await job
        await until(lambda: worker_processes() == actor_processes() == [])

    asyncio.run(scenario())


@transports
def test_progress_is_what_is_known_after_each_unit_but_the_last(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport)
        async with running(executor):
            jobs = [adapt_job(steps=4), predict_job(samples=5), predict_job(samples=1)]
            seen: list[list[Any]] = [[] for _ in jobs]
            runs = [
                executor.adapt if isinstance(job, AdaptJob) else partial(predict, executor) for job in jobs
            ]
            done = await asyncio.gather(
                *(run(job, on_progress=to.append) for run, job, to in zip(runs, jobs, seen, strict=True))
            )
            for job, timed, partials in zip(jobs, done, seen, strict=True):
                assert partials == [(n, answer(job, n)) for n in range(1, units_of(job))]
                assert timed.value.digest == answer(job)

    asyncio.run(scenario())


@transports_and_slow_ray
def test_progress_ends_when_its_awaiter_leaves_and_disturbs_nobody(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport, [slow_load])
        async with running(executor):
            seen: list[Any] = []
            leaving = asyncio.create_task(executor.adapt(adapt_job(steps=10_000), on_progress=seen.append))
            await until(lambda: len(seen) >= 3)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            before = len(seen)
            assert (await executor.adapt(adapt_job(steps=6))).value.digest == answer(adapt_job(steps=6))
            assert len(seen) == before

    asyncio.run(scenario())


@transports_and_slow_ray
def test_a_job_whose_progress_cannot_be_given_fails_alone(transport: str) -> None:
    async def scenario() -> None:
        executor = make(transport)
        async with running(executor):
            job = predict_job("no progress", samples=3)
            assert (await predict(executor, job)).value.digest == answer(job)
            with pytest.raises(ValueError, match="no progress is given"):
                await predict(executor, job, on_progress=lambda _: None)
            assert (await predict(executor, job)).value.digest == answer(job)

    asyncio.run(scenario())
