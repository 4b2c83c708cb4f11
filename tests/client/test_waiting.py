"""`wait=`: the client asks again and again for an adapter that takes longer than a proxy allows."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll_client import AsyncClient, Client, NotAdaptedError, UnavailableError, models, plans
from abmll_client.affinity import AFFINITY_HEADER
from service.embedded import Embedded
from tests.client.conftest import OPTIONS, SUPPORT
from tests.service.conftest import Server
from tests.service.engine.test_refining import SteppingWorker

CREATE: dict[str, Any] = {"options": OPTIONS}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, SteppingWorker())


def test_the_client_asks_until_the_adapter_is_there(
    server: Server, embedded: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "POLL_SECONDS", 0.05)
    server.worker.step_gate.clear()
    seen: list[str] = []

    def on_progress(progress: models.AdapterProgress) -> None:
        seen.append(progress.status)
        if len(seen) == 3:
            server.worker.step_gate.set()

    with embedded.client() as client:
        adapter = client.create_adapter(SUPPORT, wait=20, on_progress=on_progress, **CREATE)
        assert len(seen) >= 4
        assert (set(seen[:3]) <= {"queued", "running"}, seen[-1]) == (True, "succeeded")
        assert client.progress(adapter.id).status == "succeeded"
        assert client.create_adapter(SUPPORT, wait=0, **CREATE).id == adapter.id
    assert len(server.worker.adapted) == 1


def test_it_says_why_there_is_no_adapter(server: Server, embedded: Embedded) -> None:
    server.worker.step_gate.clear()
    with embedded.client() as client:
        with pytest.raises(NotAdaptedError, match=r"not done in 0.05 s, it goes on") as late:
            client.create_adapter(SUPPORT, wait=0.05, **CREATE)
        assert late.value.retryable
        timer = threading.Timer(0.1, lambda: client.cancel(late.value.adapter_id))
        timer.start()
        with pytest.raises(NotAdaptedError) as ended:
            plan = plans.create_adapter(_call(), 20)
            client._run(plan)
        timer.join()
        assert (ended.value.status, ended.value.code) == ("cancelled", "adaptation_cancelled")
        assert not ended.value.retryable


def _call() -> Any:
    from abmll_client import calls

    return calls.create_adapter(SUPPORT, **CREATE)


def test_the_asynchronous_client_does_as_well(server: Server) -> None:
    async def scenario() -> None:
        async with (
            server.running(),
            AsyncClient("http://server", transport=httpx.ASGITransport(server.app)) as client,
        ):
            server.worker.step_gate.clear()
            making = asyncio.create_task(client.create_adapter(SUPPORT, wait=20, **CREATE))
            await asyncio.sleep(0.1)
            server.worker.step_gate.set()
            adapter = await making
            assert (await client.progress(adapter.id)).step == adapter.diagnostics.steps
            assert (await client.cancel(adapter.id)).status == "succeeded"

    asyncio.run(scenario())


def test_each_request_of_a_wait_names_one_adapter_to_a_load_balancer() -> None:
    seen: list[tuple[str, str]] = []
    states = iter(["queued", "running", "succeeded"])

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.headers[AFFINITY_HEADER]))
        body = {"id": "adp_1", "object": "adapter.progress", "status": "queued", "step": 0, "steps": 9}
        if request.method == "GET":
            return httpx.Response(200, json={**body, "status": next(states)})
        return httpx.Response(202 if len(seen) == 1 else 503, json=body)

    with (
        Client(transport=httpx.MockTransport(answer), max_retries=0) as client,
        pytest.raises(UnavailableError),
    ):
        client.create_adapter(SUPPORT, wait=20, **CREATE)
    assert [method for method, _ in seen] == ["POST", "GET", "GET", "GET", "POST"]
    assert len({named for _, named in seen}) == 1


def test_both_clients_take_the_same_arguments() -> None:
    import inspect

    ours = [list(inspect.signature(kind.create_adapter).parameters) for kind in (Client, AsyncClient)]
    assert ours[0] == ours[1]
    assert {"wait", "on_progress"} <= set(ours[0])
