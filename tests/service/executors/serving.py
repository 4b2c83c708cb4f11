"""Run two worker processes, for tests that stop or kill this process.

Print their process ids, wait `stay_seconds`, print their numbers of restarts.
"""

import asyncio
import sys
from dataclasses import replace
from functools import partial

from service.executors.process import process_executor
from tests.service.executors.conftest import QUICK, until, worker_processes
from tests.service.executors.fake import adapt_job, load


async def main(unit_seconds: float, stay_seconds: float) -> None:
    supervision = replace(QUICK, hang_seconds=100.0)
    executor = process_executor([partial(load, unit_seconds)] * 2, supervision=supervision)
    await executor.start()
    await until(lambda: [worker.state for worker in executor.workers()] == ["up", "up"])
    jobs = [asyncio.create_task(executor.adapt(adapt_job(steps=10_000, seed=seed))) for seed in range(8)]
    await asyncio.sleep(0.2)
    print(*(process.pid for process in worker_processes()), flush=True)
    await asyncio.sleep(stay_seconds)
    print([worker.restarts for worker in executor.workers()], flush=True)
    assert not any(job.done() for job in jobs)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), float(sys.argv[2])))
