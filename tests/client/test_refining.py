"""Refined adapters through the client, from a server that listens and in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from abmll_client import AsyncClient, Client, NotFoundError
from tests.client.conftest import OPTIONS, SUPPORT, Server
from tests.client.transports import refusal, transport
from tests.service.engine.test_refining import SteppingWorker


@pytest.fixture
def stepping(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, SteppingWorker())
    server.worker.step_gate.clear()
    yield server
    server.worker.step_gate.set()


def test_the_name_of_an_instant_adapter_moves_while_a_client_waits(stepping: Server) -> None:
    with stepping.listening() as running, Client(running.url) as client:
        answer = client.predict(["x"], support=SUPPORT, options=OPTIONS, adapt={"refine": True})
        assert answer.refines_to is not None
        client.put_name("tickets", answer.adapter_id)
        with pytest.raises(NotFoundError, match="is being made and not there yet"):
            client.wait_for_adapter(answer.refines_to, seconds=0.1)
        threading.Timer(0.2, stepping.worker.step_gate.set).start()
        assert client.wait_for_adapter(answer.refines_to, seconds=20).id == answer.refines_to
        running.wait_for(lambda: client.name("tickets").current.version == 2)
        moved = client.predict(["x"], model="tickets")
        assert (moved.model, moved.adapter_id) == ("tickets@2", answer.refines_to)
        assert client.predict(["x"], model="tickets@1").adapter_id == answer.adapter_id


def test_a_server_that_ends_drops_what_it_makes_after_its_time_to_drain(stepping: Server) -> None:
    with stepping.listening(drain_seconds=0.1) as running, Client(running.url) as client:
        made = client.create_adapter(SUPPORT, options=OPTIONS, adapt={"refine": True})
        assert made.refines_to is not None
    assert stepping.metrics.refined.labels("dropped")._value.get() == 1
    assert (stepping.store.has(made.id), stepping.store.has(made.refines_to)) == (True, False)


def test_an_adapter_is_waited_for_to_await(stepping: Server) -> None:
    async def scenario(http: httpx.AsyncClient) -> None:
        async with AsyncClient("http://server", transport=httpx.ASGITransport(stepping.app)) as client:
            made = await client.create_adapter(SUPPORT, options=OPTIONS, adapt={"refine": True})
            assert made.refines_to is not None
            asyncio.get_running_loop().call_later(0.1, stepping.worker.step_gate.set)
            assert (await client.wait_for_adapter(made.refines_to, 20)).id == made.refines_to
            with pytest.raises(NotFoundError, match="there is no adapter"):
                await client.wait_for_adapter("adp_0", 20)

    stepping.run(scenario)


def test_a_client_waits_as_long_as_the_server_asks(slept: list[float]) -> None:
    busy = [refusal(404, "unknown_adapter", retry_after=str(seconds)) for seconds in (7, 2)]
    gone = refusal(404, "unknown_adapter")
    answers = [busy[0], httpx.ConnectError("refused"), busy[1], gone]
    with (
        Client(transport=transport(*answers)) as client,
        pytest.raises(NotFoundError),
    ):
        client.wait_for_adapter("adp_0", 60)
    first, broken, second = slept
    assert 7 <= first <= 10.5
    assert 0 <= broken <= 1
    assert 2 <= second <= 3


def test_a_client_does_not_wait_longer_than_it_was_asked_to(slept: list[float]) -> None:
    with (
        Client(transport=transport(refusal(404, "unknown_adapter", retry_after="60"))) as client,
        pytest.raises(NotFoundError),
    ):
        client.wait_for_adapter("adp_0", 0.5)
    assert 0 < max(slept) <= 0.5
