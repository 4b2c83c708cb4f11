from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import psutil
import pytest

from service.executors.contract import Executor, Worker
from service.executors.inline import inline_executor
from service.executors.pool import WorkerPool
from service.executors.process import process_executor
from service.executors.supervision import Supervision
from service.metrics import Metrics
from tests.service.executors.fake import load

Load = Callable[[], Worker]
QUICK = Supervision(
    heartbeat_seconds=0.1, hang_seconds=1.0, first_wait_seconds=0.02, longest_wait_seconds=0.1
)


def make(transport: str, loads: Sequence[Load] = (load,), metrics: Metrics | None = None) -> WorkerPool:
    """Build an executor. The transport `ray-2` has two actors, with the first of `loads` in each."""
    if transport == "inline":
        return inline_executor(loads[0], metrics)
    if transport.startswith("ray"):
        from service.executors.ray import ray_executor

        return ray_executor([loads[0]] * int(transport[-1]), metrics, supervision=QUICK)
    return process_executor(loads, metrics, supervision=QUICK)


@pytest.fixture(scope="session")
def _ray_ends_with_the_tests() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    yield
    ray.shutdown()


@pytest.fixture
def ray_cluster(_ray_ends_with_the_tests: None) -> None:
    """Start Ray on this machine, with room for four actors, where it does not run already."""
    ray = pytest.importorskip("ray")
    if not ray.is_initialized():
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(
            "local",
            num_cpus=4,
            object_store_memory=100 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )


@pytest.fixture(autouse=True)
def _ray_where_needed(request: pytest.FixtureRequest) -> None:
    parameters = getattr(request.node, "callspec", None)
    if parameters is not None and str(parameters.params.get("transport")).startswith("ray"):
        request.getfixturevalue("ray_cluster")


@asynccontextmanager
async def running(executor: Executor) -> AsyncIterator[None]:
    """Start the executor, and close it when the context ends, after at most 30 s."""
    async with asyncio.timeout(30):
        try:
            await executor.start()
            yield
        finally:
            await executor.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


_OTHERS: set[int] = set()


@pytest.fixture(autouse=True)
def _leave_others_alone() -> None:
    """Note the worker processes that are there before a test: no test here may kill them."""
    _OTHERS.clear()
    _OTHERS.update(process.pid for process in worker_processes())


def worker_processes() -> list[psutil.Process]:
    """Return the living worker processes of this test, without those of its child processes."""
    return [p for p in psutil.Process().children() if _is_worker(p) and p.pid not in _OTHERS]


def actor_processes() -> list[psutil.Process]:
    """Return the living processes of Ray's actors, which are not our children but those of Ray's."""
    return [p for p in psutil.Process().children(recursive=True) if _is_worker(p, "ray::RayWorker")]


def _is_worker(process: psutil.Process, name: str = "spawn_main") -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and name in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


slow_load = partial(load, 0.02)
