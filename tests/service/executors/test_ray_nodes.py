"""A Ray cluster of several nodes on this machine: nodes come, and nodes die while requests run."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.executors.pool import WorkerPool
from tests.service.executors.conftest import QUICK, until
from tests.service.executors.fake import adapt_job, answer, load, predict, predict_job

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    # Ray's own nodes leave the files of their logs open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Ray Client connection timed out:UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}


@pytest.fixture
def client_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def cluster(client_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster with one node, which has room for one worker."""
    from ray.cluster_utils import Cluster

    # What a front end outside the cluster sends is looked for on the nodes' own path.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    ray.shutdown()  # the one that other tests share
    made = Cluster(initialize_head=True, head_node_args={**NODE, "ray_client_server_port": client_port})
    yield made
    ray.shutdown()
    made.shutdown()


def executor_of(address: str, workers: int, unit_seconds: float = 0.01) -> WorkerPool:
    from service.executors.ray import ray_executor

    return ray_executor([partial(load, unit_seconds)] * workers, address=address, supervision=QUICK)


def states(executor: WorkerPool) -> list[str]:
    return sorted(worker.state for worker in executor.workers())


async def ask(executor: WorkerPool, count: int) -> None:
    """Ask for so many answers of either lane at a time; none may be wrong or an error."""
    adapts = [adapt_job(steps=3, seed=n) for n in range(count)]
    predicts = [predict_job(samples=3, adapter=f"adp_{n}") for n in range(count)]
    done = await asyncio.gather(*map(executor.adapt, adapts), *(predict(executor, job) for job in predicts))
    assert [timed.value.digest for timed in done] == list(map(answer, [*adapts, *predicts]))


def test_workers_join_with_a_node_and_leave_with_it(cluster: Any) -> None:
    async def scenario() -> None:
        executor = executor_of(cluster.address, workers=2)
        await executor.start()
        try:
            assert states(executor) == ["starting", "up"]
            await ask(executor, 10)
            second = cluster.add_node(**NODE)  # Ray wants the main thread
            async with asyncio.timeout(60):
                await until(lambda: states(executor) == ["up", "up"])
            asking = asyncio.create_task(ask(executor, 100))
            await asyncio.sleep(0.5)
            assert not asking.done()
            second.kill_raylet()
            async with asyncio.timeout(60):
                await asking
            assert states(executor) == ["starting", "up"]
            cluster.add_node(**NODE)
            async with asyncio.timeout(90):
                await until(lambda: states(executor) == ["up", "up"])
            await ask(executor, 10)
        finally:
            await executor.close()

    asyncio.run(scenario())


def test_a_front_end_outside_the_cluster_comes_by_rays_client(cluster: Any, client_port: int) -> None:
    async def scenario() -> None:
        executor = executor_of(f"ray://127.0.0.1:{client_port}", workers=1)
        async with asyncio.timeout(120):
            await executor.start()
            await ask(executor, 10)
            await executor.close()

    asyncio.run(scenario())


def test_a_cluster_that_does_not_answer_is_an_error_that_names_it(client_port: int) -> None:
    async def scenario() -> None:
        ray.shutdown()
        executor = executor_of(f"ray://127.0.0.1:{client_port}", workers=2)
        async with asyncio.timeout(120):
            with pytest.raises(ConnectionError, match=str(client_port)):
                await executor.start()
            await executor.close()

    asyncio.run(scenario())
