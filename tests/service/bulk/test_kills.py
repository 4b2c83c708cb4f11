"""A server process that is killed in the middle of a batch, and started again."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import openai

from abmll.prediction.run import Prediction
from service.executors.contract import PredictJob
from service.server import DrainingServer, uvicorn_config
from tests.service.bulk.rows import TASK, lines, predict_rows
from tests.service.conftest import Server
from tests.service.fakes import FakeWorker

ROWS, GROUP_SECONDS, KILLS = 1500, 0.1, 3


class SlowWorker(FakeWorker):
    def _predict_all(self, job: PredictJob, adapter: Any) -> list[Prediction]:
        time.sleep(GROUP_SECONDS)
        return list(super()._predict_all(job, adapter))


def serve(root: Path, port: Connection) -> None:
    """Serve with a fake worker and a real store until this process is killed."""
    server = Server(root, SlowWorker())
    config = uvicorn_config(server.app, server.settings.model_copy(update={"port": 0}))
    uvicorn = DrainingServer(config, server.engine, 5, 60)

    async def run() -> None:
        serving = asyncio.create_task(uvicorn.serve())
        while not uvicorn.started:
            await asyncio.sleep(0.01)
        port.send(uvicorn.servers[0].sockets[0].getsockname()[1])
        await serving

    asyncio.run(run())


@contextmanager
def running(root: Path) -> Iterator[openai.OpenAI]:
    """Start a server process, and kill it in the end."""
    # Forked from a process that has imported all: a start takes milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(root, there))
    process.start()
    try:
        assert here.poll(120)
        url = f"http://127.0.0.1:{here.recv()}/v1"
        with openai.OpenAI(base_url=url, api_key="none") as client:  # which tries again while it starts
            yield client
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        process.close()


def answered(client: openai.OpenAI, batch_id: str, least: int) -> Any:
    """Return the batch once so many rows are answered."""
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.request_counts is not None and batch.request_counts.completed >= least:
            return batch
        assert batch.status in {"validating", "in_progress", "finalizing"}, batch
        time.sleep(0.02)


def test_three_kills_lose_no_row_and_repeat_none(tmp_path: Path) -> None:
    with running(tmp_path) as client:
        made = client.post("/adapters", body=TASK, cast_to=object)
        rows = predict_rows(ROWS, made["id"], samples=0)  # type: ignore[index]
        file = client.files.create(file=("rows.jsonl", lines(rows)), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/predict",
            completion_window="24h",  # type: ignore[arg-type]
        )
        counts = [answered(client, batch.id, 1).request_counts.completed]
    for _ in range(KILLS - 1):
        with running(tmp_path) as client:
            found = client.batches.retrieve(batch.id)
            assert (found.status, found.id) == ("in_progress", batch.id)
            assert found.request_counts is not None
            assert found.request_counts.completed >= counts[-1], "what was reported is on the disk"
            counts.append(answered(client, batch.id, counts[-1] + 1).request_counts.completed)
    assert counts[-1] < ROWS
    with running(tmp_path) as client:
        batch = answered(client, batch.id, ROWS)
        while batch.status != "completed":
            time.sleep(0.02)
            batch = client.batches.retrieve(batch.id)
        content = client.files.content(batch.output_file_id or "").content
    answers = [json.loads(line) for line in content.splitlines()]
    assert [a["custom_id"] for a in answers] == [row["custom_id"] for row in rows]
    assert all(a["response"]["body"]["predictions"] for a in answers)
