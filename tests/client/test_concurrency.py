"""Bursts: hundreds of requests at once from one client, against servers that take few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from abmll_client import AsyncClient, BusyError, Client, ConnectionFailedError, TookTooLongError
from abmll_client.concurrency import Places
from service.embedded import Embedded
from tests.client.conftest import OPTIONS, SUPPORT
from tests.service.conftest import Server
from tests.service.fakes import FakeRun, FakeWorker

ANSWER = {"id": "adp_0", "object": "adapter", "pinned": True}


class SlowWorker(FakeWorker):
    """Takes `seconds` for each prediction, one after the other."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def advance(self, runs: Sequence[FakeRun]) -> None:
        super().advance(runs)
        time.sleep(self.seconds * len(runs))


@contextlib.asynccontextmanager
async def clients(server: Server, count: int) -> AsyncIterator[list[AsyncClient]]:
    """Asynchronous clients of the application, on this event loop, that retry once at most."""
    async with server.running(), contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                AsyncClient("http://server", transport=httpx.ASGITransport(server.app), max_retries=1)
            )
            for _ in range(count)
        ]


@pytest.mark.parametrize(
    ("queue_limit", "count", "of_clients"), [(64, 400, 1), (8, 200, 1), (1, 50, 1), (64, 400, 4)]
)
def test_a_burst_is_answered_without_a_wait_for_the_servers_retry_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, queue_limit: int, count: int, of_clients: int
) -> None:
    """400 at once took 182 s before, of which the server was idle for 48 s of each minute."""
    caplog.set_level("INFO", logger="abmll_client")
    worker = SlowWorker(0.015)
    server = Server(tmp_path, worker, queue_limit=queue_limit)

    async def scenario() -> None:
        async with clients(server, of_clients) as several:
            adapter = (await several[0].create_adapter(SUPPORT, options=OPTIONS)).id
            answers = await asyncio.gather(
                *(several[i % of_clients].predict([f"text {i}"], adapter_id=adapter) for i in range(count))
            )
            assert all(len(answer.predictions) == 1 for answer in answers)

    asyncio.run(scenario())
    assert len(worker.predicted) == count
    assert waits(caplog) == []


def waits(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the clients have said about the tries that they made again after a wait."""
    return [record.getMessage() for record in caplog.records if "again in" in record.getMessage()]


def test_threads_that_share_a_client_share_its_places(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="abmll_client")
    worker = SlowWorker(0.01)
    running = Embedded(Server(tmp_path, worker, queue_limit=4).app)
    with contextlib.closing(running), running.client() as client:
        adapter = client.create_adapter(SUPPORT, options=OPTIONS).id
        with ThreadPoolExecutor(60) as threads:
            list(threads.map(lambda i: client.predict([f"text {i}"], adapter_id=adapter), range(120)))
    assert len(worker.predicted) == 120
    assert waits(caplog) == []


# ---- the rule of the window, against servers that are played -------------------------------------


class Bounded(httpx.AsyncBaseTransport):
    """A server that takes `most` requests at a time, and notes how many there were."""

    def __init__(self, most: int, retry_after: str = "30") -> None:
        self.most, self.retry_after = most, retry_after
        self.inside = self.highest = self.sent = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent += 1
        if self.inside >= self.most:
            return httpx.Response(429, headers={"retry-after": self.retry_after})
        self.inside += 1
        self.highest = max(self.highest, self.inside)
        try:
            await asyncio.sleep(0.005)
        finally:
            self.inside -= 1
        return httpx.Response(200, json=ANSWER)


@pytest.mark.parametrize("most", [1, 3, 32])
def test_no_more_than_max_concurrency_are_sent_at_a_time(most: int) -> None:
    server = Bounded(1000)

    async def scenario() -> None:
        async with AsyncClient(transport=server, max_concurrency=most) as client:
            await asyncio.gather(*(client.pin(f"adp_{i}") for i in range(100)))

    asyncio.run(scenario())
    assert (server.highest, server.sent) == (most, 100)


@pytest.mark.parametrize("taken", [1, 5, 31])
def test_a_refusal_because_of_its_own_requests_costs_no_wait_and_no_try(taken: int) -> None:
    server = Bounded(taken)

    async def scenario() -> None:
        async with asyncio.timeout(20), AsyncClient(transport=server, max_retries=1) as client:
            await asyncio.gather(*(client.pin(f"adp_{i}") for i in range(200)))

    asyncio.run(scenario())
    assert server.highest == taken
    assert server.sent < 3 * 200


def test_without_retries_a_refusal_is_raised_at_once() -> None:
    server = Bounded(5)

    async def scenario() -> list[object]:
        async with AsyncClient(transport=server, max_retries=0) as client:
            return await asyncio.gather(*(client.pin(f"adp_{i}") for i in range(32)), return_exceptions=True)

    found = asyncio.run(scenario())
    assert any(isinstance(one, BusyError) for one in found)
    assert server.sent == 32  # each once


def test_a_server_that_stays_busy_is_given_up_after_the_tries() -> None:
    server = Bounded(0, retry_after="0")

    async def scenario() -> list[object]:
        async with asyncio.timeout(20), AsyncClient(transport=server, max_retries=2) as client:
            return await asyncio.gather(*(client.pin(f"adp_{i}") for i in range(100)), return_exceptions=True)

    assert all(isinstance(one, BusyError) for one in asyncio.run(scenario()))
    assert 300 <= server.sent < 600


def test_a_refusal_counts_for_as_long_as_the_server_asks_to_wait() -> None:
    """A long request of this client does not hold back others when the server has room again."""
    server, long = Bounded(2, retry_after="0.1"), asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        if "long" in request.url.path:
            await long.wait()
        return await server.handle_async_request(request)

    async def scenario() -> None:
        async with asyncio.timeout(20), AsyncClient(transport=httpx.MockTransport(handle)) as client:
            working = asyncio.create_task(client.pin("long"))
            await asyncio.sleep(0.01)
            server.most = 0  # others fill it
            refused = asyncio.create_task(client.pin("short"))
            await asyncio.sleep(0.01)
            server.most = 2
            assert (await refused).pinned
            long.set()
            await working

    asyncio.run(scenario())


def test_cancelled_and_failed_requests_give_their_places_back() -> None:
    server = Bounded(1000)

    async def handle(request: httpx.Request) -> httpx.Response:
        answer = await server.handle_async_request(request)
        if "breaks" in request.url.path:
            raise httpx.ReadError("gone")
        return httpx.Response(504) if "late" in request.url.path else answer

    async def scenario() -> None:
        transport = httpx.MockTransport(handle)
        async with (
            asyncio.timeout(20),
            AsyncClient(transport=transport, max_concurrency=2, max_retries=0) as client,
        ):
            names = ["breaks", "late", "fine", "cancelled"] * 20
            tasks = [asyncio.create_task(client.pin(name)) for name in names]
            await asyncio.sleep(0.012)
            for task in tasks[3::4]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, ConnectionFailedError) for one in found[::4])
            assert all(isinstance(one, TookTooLongError) for one in found[1::4])
            assert not any(isinstance(one, BaseException) for one in found[2::4])
            assert (await client.pin("after")).pinned

    asyncio.run(scenario())


def test_probes_and_lists_need_no_place() -> None:
    entered, leave = threading.Event(), threading.Event()

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"status": "ready", "object": "list", "data": []})
        entered.set()
        assert leave.wait(20)
        return httpx.Response(200, json=ANSWER)

    with Client(transport=httpx.MockTransport(handle), max_concurrency=1) as client:
        working = threading.Thread(target=lambda: client.pin("adp_0"))
        working.start()
        assert entered.wait(20)
        assert client.ready()
        assert client.models() == []
        leave.set()
        working.join()


def test_there_is_at_least_one_place() -> None:
    with pytest.raises(ValueError, match="max_concurrency is at least 1, not 0"):
        Places(0)
