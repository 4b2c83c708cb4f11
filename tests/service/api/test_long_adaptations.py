"""Adaptations that go on without their client: `wait_ms`, progress, events, cancelling, restarts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.adapters.statuses import StatusStore
from tests.service.conftest import Server, until
from tests.service.engine.test_refining import SteppingWorker, priced_server
from tests.service.fakes import FakeRun

SUPPORT = [{"input": f"text {n}", "output": "yes" if n % 2 else "no"} for n in range(6)]
CREATE: dict[str, Any] = {"support": SUPPORT, "options": ["yes", "no"]}
ADAPTERS = "/v1/adapters"


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, SteppingWorker())


async def begin(client: httpx.AsyncClient, wait_ms: int = 0, **more: Any) -> httpx.Response:
    return await client.post(ADAPTERS, json={**CREATE, **more}, params={"wait_ms": wait_ms})


async def begun(client: httpx.AsyncClient, **more: Any) -> str:
    answer = await begin(client, **more)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def status(client: httpx.AsyncClient, adapter_id: str, wait_ms: int = 0) -> dict[str, Any]:
    answer = await client.get(f"{ADAPTERS}/{adapter_id}/progress", params={"wait_ms": wait_ms})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ended(server: Server, how: str) -> float:
    return float(server.metrics.long_adaptations.labels(how)._value.get())


def test_what_is_ready_in_time_is_created_and_then_found(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        made = await begin(client, wait_ms=20_000)
        assert (made.status_code, made.json()["cache"]) == (201, "miss")
        again = await begin(client, wait_ms=20_000)
        assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])
        found = await status(client, made.json()["id"])
        assert (found["status"], found["step"], found["steps"]) == (
            "succeeded",
            *[made.json()["diagnostics"]["steps"]] * 2,
        )
        assert (await client.get(f"{ADAPTERS}/adp_00000000/progress")).status_code == 404

    server.run(scenario)


def test_the_client_polls_and_the_adapter_is_there_at_the_end(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        answer = await begin(client)
        adapter_id = answer.json()["id"]
        assert answer.status_code == 202
        assert answer.headers["location"] == f"{ADAPTERS}/{adapter_id}/progress"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["status"] in ("queued", "running")
        assert (await begun(client)) == adapter_id
        assert (await client.get(f"{ADAPTERS}/{adapter_id}")).status_code == 404
        waiting = asyncio.create_task(status(client, adapter_id, 20_000))
        joined = asyncio.create_task(client.post(ADAPTERS, json=CREATE))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        server.worker.step_gate.set()
        assert (await waiting)["status"] == "succeeded"
        assert (await joined).json()["cache"] == "joined"
        assert (await client.get(f"{ADAPTERS}/{adapter_id}")).json()["id"] == adapter_id
        assert (ended(server, "succeeded"), len(server.worker.adapted)) == (1, 1)
        assert list(StatusStore(server.settings.statuses_dir).read()) == []

    server.run(scenario)


def test_it_outlives_the_client_and_the_deadline_of_a_request(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        server.set_deadline(0.05)
        leaving = asyncio.create_task(begin(client, wait_ms=20_000))
        await until(lambda: len(server.engine.long_adaptations) == 1)
        leaving.cancel()
        await asyncio.sleep(0.1)
        server.worker.step_gate.set()
        await until(lambda: ended(server, "succeeded") == 1)

    server.run(scenario)


def test_events_follow_it_to_its_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    monkeypatch.setattr(FakeRun, "partial", lambda _: tuple(losses))

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        adapter_id = await begun(client)
        following = asyncio.create_task(client.get(f"{ADAPTERS}/{adapter_id}/events"))
        await asyncio.sleep(0.05)
        losses.extend([0.5, float("nan")])
        await asyncio.sleep(0.1)
        server.worker.step_gate.set()
        events = [
            (event.splitlines()[0].removeprefix("event: "), json.loads(event.splitlines()[1][6:]))
            for event in (await following).text.strip().split("\n\n")
        ]
        assert [name for name, _ in events[-3:]] == ["progress", "progress", "done"]
        assert [data["status"] for _, data in events[-3:]] == ["running", "running", "succeeded"]
        assert [data["step"] for _, data in events[-3:-1]] == [0, 2]
        assert "loss" not in events[-2][1]
        unknown = await client.get(f"{ADAPTERS}/adp_00000000/events")
        assert unknown.status_code == 404

    server.run(scenario)


def test_a_cancelled_one_ends_on_its_worker_too_and_can_be_asked_for_again(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        waiting = asyncio.create_task(begin(client, wait_ms=20_000))
        await until(lambda: len(server.engine.long_adaptations) == 1)
        (adapter_id,) = server.engine.long_adaptations._entries
        await until(lambda: server.engine._registry.is_being_made(adapter_id))
        answer = await client.post(f"{ADAPTERS}/{adapter_id}/cancel")
        assert (answer.json()["status"], answer.json()["error"]["code"]) == (
            "cancelled",
            "adaptation_cancelled",
        )
        assert ((await waiting).status_code, (await waiting).json()["error"]["code"]) == (
            409,
            "adaptation_cancelled",
        )
        assert (await client.post(f"{ADAPTERS}/{adapter_id}/cancel")).json()["status"] == "cancelled"
        assert (await status(client, adapter_id, 1000))["status"] == "cancelled"
        await until(lambda: server.engine.workers()[0].jobs == 0)
        server.worker.step_gate.set()
        assert (await begin(client, wait_ms=20_000)).status_code == 201
        assert (await client.post(f"{ADAPTERS}/{adapter_id}/cancel")).json()["status"] == "succeeded"
        assert (ended(server, "cancelled"), len(server.worker.adapted)) == (1, 1)
        assert (await client.delete(f"{ADAPTERS}/{adapter_id}")).status_code == 200
        assert (await client.get(f"{ADAPTERS}/{adapter_id}/progress")).status_code == 404

    server.run(scenario)


def test_what_waits_for_a_worker_beyond_its_deadline_is_never_begun(tmp_path: Path) -> None:
    server = Server(tmp_path, SteppingWorker(), long_deadline_seconds=0.1)

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        adapter_id = await begun(client)
        found = await status(client, adapter_id, 20_000)
        assert (found["status"], found["error"]["code"]) == ("expired", "deadline_exceeded")
        assert "long_deadline_seconds" in found["error"]["message"]
        await until(lambda: server.engine.workers()[0].jobs == 0)
        server.worker.step_gate.set()
        await asyncio.sleep(0.05)
        assert server.worker.adapted == []

    server.run(scenario)


def test_a_failure_is_the_status_and_nothing_of_it_is_stored(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        adapter_id = await begun(client)
        server.worker.refuse = ValueError("secret")
        server.worker.step_gate.set()
        found = await status(client, adapter_id, 20_000)
        assert (found["status"], found["error"]["code"]) == ("failed", "internal_error")
        assert "secret" not in json.dumps(found)
        now = await begin(client, wait_ms=20_000)
        assert (now.status_code, now.json()["error"]["code"]) == (500, "internal_error")
        refused = await begin(client, support=[{"input": "x", "output": "other"}])
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "support[0].output")

    server.run(scenario)


def test_after_a_restart_the_status_is_honest(tmp_path: Path) -> None:
    first = Server(tmp_path, SteppingWorker())
    ids = []

    async def stopped(client: httpx.AsyncClient) -> None:
        first.worker.step_gate.clear()
        ids.extend([await begun(client), await begun(client, seed=1)])
        await client.post(f"{ADAPTERS}/{ids[1]}/cancel")
        (left,) = [s for s in StatusStore(first.settings.statuses_dir).read() if s.status == "queued"]
        ids.append(left)

    first.run(stopped)
    (kept,) = [s for s in StatusStore(first.settings.statuses_dir).read() if s.adapter_id == ids[0]]
    assert (kept.status, kept.code) == ("failed", "adaptation_lost")
    # As kill -9 leaves it, and a file that is damaged.
    StatusStore(first.settings.statuses_dir).put(ids[2])
    (first.settings.statuses_dir / "adp_0000000000000000.json").write_text("{")
    second = Server(tmp_path, SteppingWorker())

    async def asked(client: httpx.AsyncClient) -> None:
        found = [await status(client, adapter_id) for adapter_id in ids[:2]]
        assert [(f["status"], f["error"]["code"]) for f in found] == [
            ("failed", "adaptation_lost"),
            ("cancelled", "adaptation_cancelled"),
        ]
        assert "send it again" in found[0]["error"]["message"]
        assert (await begin(client, wait_ms=20_000)).status_code == 201
        assert (await status(client, ids[0]))["status"] == "succeeded"

    second.run(asked)


def test_a_status_that_cannot_be_stored_is_not_acknowledged(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space")

    async def scenario(client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(server.engine.long_adaptations._store, "put", full)
        answer = await begin(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "store_failed")
        assert server.worker.adapted == []
        monkeypatch.undo()
        assert (await begin(client, wait_ms=20_000)).status_code == 201

    server.run(scenario)


def test_its_price_may_exceed_the_deadline_of_a_request_but_not_its_own(tmp_path: Path) -> None:
    server = priced_server(tmp_path, deadline_seconds=5, long_deadline_seconds=60)

    async def scenario(client: httpx.AsyncClient) -> None:
        one = {"adapt": {"steps": 1}}
        assert (await client.post(ADAPTERS, json={**CREATE, **one})).status_code == 422
        assert (await begin(client, wait_ms=20_000, **one)).status_code == 201
        refused = await begin(client, adapt={"steps": 9})
        assert refused.json()["error"]["code"] == "price_exceeds_deadline"

    server.run(scenario)


def test_a_drain_waits_for_it(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        await begun(client)
        server.engine.drain()
        idle = asyncio.create_task(server.engine.idle())
        await asyncio.sleep(0.05)
        assert not idle.done()
        server.worker.step_gate.set()
        await idle
        assert ended(server, "succeeded") == 1

    server.run(scenario)


def test_ends_are_forgotten_after_their_time(tmp_path: Path) -> None:
    server = Server(tmp_path, SteppingWorker(), status_seconds=0)

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        first = await begun(client)
        await client.post(f"{ADAPTERS}/{first}/cancel")
        await begun(client, seed=1)
        assert (await client.get(f"{ADAPTERS}/{first}/progress")).status_code == 404
        assert [s.status for s in StatusStore(server.settings.statuses_dir).read()] == ["queued"]

    server.run(scenario)


@pytest.mark.parametrize(
    ("losses", "value"),
    [((1.0, float("nan")), 0.1), ((1.0, 2.0), float("inf")), ((1.0, 900.0, 400.0, 700.0), 0.1)],
)
def test_what_diverged_is_refused_and_never_stored(
    server: Server, monkeypatch: pytest.MonkeyPatch, losses: tuple[float, ...], value: float
) -> None:
    """Also where the worker does not say so."""
    usual = SteppingWorker._adapt

    def broken(worker: SteppingWorker, job: Any) -> Any:
        made = usual(worker, job)
        posterior = replace(made.posterior, values=made.posterior.values.fill_(value))
        return replace(made, posterior=posterior, losses=losses)

    async def scenario(client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(SteppingWorker, "_adapt", broken)
        refused = await client.post(ADAPTERS, json=CREATE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "fit_diverged")
        assert "smaller learning rate" in refused.json()["error"]["message"]
        found = await status(client, await begun(client), 20_000)
        assert (found["status"], found["error"]["code"]) == ("failed", "fit_diverged")
        assert (await client.get(ADAPTERS)).json()["data"] == []
        assert list(server.settings.adapters_dir.glob("adp_*")) == []
        monkeypatch.undo()
        assert (await client.post(ADAPTERS, json=CREATE)).status_code == 201

    server.run(scenario)
