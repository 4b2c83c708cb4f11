from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import psutil

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
    if transport == "inline":
        return inline_executor(loads[0], metrics)
    return process_executor(loads, metrics, supervision=QUICK)


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


def worker_processes() -> list[psutil.Process]:
    """Return the living worker processes of this process, without those of its child processes."""
    return [p for p in psutil.Process().children() if _is_worker(p)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


slow_load = partial(load, 0.02)
