"""Streams whose reader is slow or stops."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.native import streaming
from tests.service.api.stepping import (
    BODY,
    CREATE,
    SteppedWorker,
    read,
)
from tests.service.conftest import Server, until


@pytest.fixture
def worker() -> SteppedWorker:
    return SteppedWorker()


@pytest.fixture
def server(tmp_path: Path, worker: SteppedWorker) -> Server:
    return Server(tmp_path, worker)


class SlowReader:
    """Client that reads one body, and the others after `reading` is set."""

    def __init__(self, server: Server, body: dict[str, Any]) -> None:
        content = json.dumps({**body, "stream": True}).encode()
        self.scope = {
            "type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "asgi": {"spec_version": "2.3"},
        }  # fmt: skip
        self.app, self.inbox = server.app, [{"type": "http.request", "body": content, "more_body": False}]
        self.bodies: list[bytes] = []
        self.reading, self.stuck = asyncio.Event(), asyncio.Event()

    async def receive(self) -> Any:
        if self.inbox:
            return self.inbox.pop()
        await asyncio.Event().wait()

    async def send(self, message: Any) -> None:
        if self.bodies:
            self.stuck.set()
            await self.reading.wait()
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])

    async def run(self) -> None:
        await self.app(self.scope, self.receive, self.send)


def test_a_slow_reader_gets_the_latest_and_misses_what_was_overtaken(
    server: Server, worker: SteppedWorker
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await client.post("/v1/adapters", json=CREATE)
        reader = SlowReader(server, {**BODY, "inputs": ["x"], "samples": 64})
        before = worker.progress_calls
        worker.turns = threading.Semaphore(2)
        request = asyncio.create_task(reader.run())
        await reader.stuck.wait()  # with the first refinement, or the second
        worker.turns.release(5)
        await until(lambda: worker.progress_calls - before == 7)
        await asyncio.sleep(0.1)  # for the events to reach the event loop
        reader.reading.set()
        await until(lambda: b'"samples":56' in b"".join(reader.bodies))
        worker.turns.release(100)
        await request
        text = b"".join(reader.bodies).decode()
        counts = [e.data["samples"] for e in read(iter(text.split("\n"))) if "samples" in e.data]
        assert counts[-2:] == [56, 64]
        assert counts == sorted(counts)
        assert len(counts) <= 5

    server.run(scenario)


def test_a_reader_that_has_stopped_loses_its_place(
    tmp_path: Path, worker: SteppedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SEND_SECONDS", 0.2)
    server = Server(tmp_path, worker, deadline_seconds=4)

    async def scenario(client: httpx.AsyncClient) -> None:
        await client.post("/v1/adapters", json=CREATE)
        reader = SlowReader(server, {**BODY, "samples": 64})
        with pytest.raises(TimeoutError):
            await reader.run()
        assert reader.stuck.is_set()
        assert server.engine.in_flight == 0

    server.run(scenario)
