"""The engine, through HTTP, with a model that tests can stop in the middle of its work."""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path

import httpx
import pytest

from abmll.decoder.layout import flat_size
from model_store.errors import StorageFullError
from service.executors.contract import WorkerFatalError
from tests.service.conftest import Server, pass_time, until
from tests.service.fakes import CONFIG, SITES, FakeWorker, served_model

SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
CREATE = {"support": SUPPORT, "options": ["yes", "no"]}
PREDICT = {**CREATE, "inputs": ["fine", "awful"]}


def other(seed: int) -> dict[str, object]:
    return {**CREATE, "seed": seed}


def test_equal_concurrent_requests_join_one_adaptation(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.adapt_gate.clear()
        requests = [asyncio.create_task(client.post("/v1/predict", json=PREDICT)) for _ in range(3)]
        requests += [asyncio.create_task(client.post("/v1/adapters", json=CREATE)) for _ in range(2)]
        await until(lambda: server.engine.in_flight == 5)
        server.worker.adapt_gate.set()
        answers = [response.json() for response in await asyncio.gather(*requests)]
        assert len(server.worker.adapted) == 1
        assert sorted(answer["cache"] for answer in answers) == ["joined"] * 4 + ["miss"]
        assert len({answer.get("adapter_id") or answer["id"] for answer in answers}) == 1

    server.run(scenario)


def test_the_same_support_is_adapted_once_and_another_seed_is_another_adapter(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        first = await client.post("/v1/adapters", json=CREATE)
        again = await client.post("/v1/adapters", json=CREATE)
        third = await client.post("/v1/adapters", json=other(1))
        assert [r.status_code for r in (first, again, third)] == [201, 200, 201]
        assert [r.json()["cache"] for r in (first, again, third)] == ["miss", "hit", "miss"]
        assert first.json()["id"] == again.json()["id"] != third.json()["id"]
        assert len(server.worker.adapted) == 2

    server.run(scenario)


def test_a_restart_serves_acknowledged_adapters_with_equal_answers(tmp_path: Path) -> None:
    before = Server(tmp_path).post("/v1/predict", PREDICT).json()
    restarted = Server(tmp_path)
    by_id = {"adapter_id": before["adapter_id"], "inputs": PREDICT["inputs"]}
    after = restarted.post("/v1/predict", by_id).json()
    assert after["cache"] == "hit"
    assert restarted.worker.adapted == []
    assert after["predictions"] == before["predictions"]


def test_joiners_of_a_read_from_disk_get_a_hit(tmp_path: Path) -> None:
    Server(tmp_path).post("/v1/adapters", CREATE)
    restarted = Server(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(client.post("/v1/adapters", json=CREATE) for _ in range(3)))
        assert [answer.json()["cache"] for answer in answers] == ["hit"] * 3

    restarted.run(scenario)


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken"), StorageFullError("the disk is full")])
def test_an_adapter_that_cannot_be_stored_is_not_acknowledged(
    server: Server, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def put(adapter: object) -> None:
        raise failure

    async def scenario(client: httpx.AsyncClient) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(server.store, "put", put)
            refused = await client.post("/v1/adapters", json=CREATE)
        assert (refused.status_code, refused.headers["retry-after"]) == (507, "30")
        assert refused.json()["error"]["code"] == "store_failed"
        assert (await client.get("/v1/adapters")).json()["data"] == []
        assert (await client.post("/v1/adapters", json=CREATE)).json()["cache"] == "miss"

    server.run(scenario)


def test_a_full_queue_is_429_with_retry_after_before_anything_is_read_of_the_request(tmp_path: Path) -> None:
    server = Server(tmp_path, queue_limit=2)

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.adapt_gate.clear()
        running = [asyncio.create_task(client.post("/v1/adapters", json=other(seed))) for seed in range(2)]
        await until(lambda: server.engine.in_flight == 2)
        refused = await client.post("/v1/adapters", json={**other(2), "model": "unknown"})
        server.worker.adapt_gate.set()
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert [(await request).status_code for request in running] == [201, 201]
        assert (await client.post("/v1/adapters", json=other(2))).status_code == 201

    server.run(scenario)


def test_past_the_deadline_504_names_the_adapter_and_a_retry_joins_it(
    server: Server,
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.adapt_gate.clear()
        server.set_deadline(20)
        asking = asyncio.create_task(client.post("/v1/predict", json=PREDICT))
        await until(lambda: server.engine.workers()[0].jobs == 1)
        pass_time(20)
        late = await asking
        assert late.status_code == 504
        error = late.json()["error"]
        assert error["code"] == "deadline_exceeded"
        server.set_deadline(60)
        retry = asyncio.create_task(client.post("/v1/predict", json=PREDICT))
        await until(lambda: server.engine.in_flight == 1)
        server.worker.adapt_gate.set()
        answer = (await retry).json()
        assert "error" not in answer, answer
        assert (answer["adapter_id"], answer["cache"]) == (error["adapter_id"], "joined")
        assert len(server.worker.adapted) == 1

    server.run(scenario)


def test_a_prediction_that_expires_in_the_queue_never_runs(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        adapter = (await client.post("/v1/adapters", json=CREATE)).json()["id"]
        server.worker.predict_gate.clear()
        server.set_deadline(20)
        bodies = [{"adapter_id": adapter, "inputs": [text]} for text in ("first", "second")]
        asking = [asyncio.create_task(client.post("/v1/predict", json=body)) for body in bodies]
        await until(lambda: server.engine.workers()[0].jobs == 2 and len(server.worker.predicted) == 1)
        pass_time(20)
        late = await asyncio.gather(*asking)
        assert [response.status_code for response in late] == [504, 504]
        for response in late:
            assert response.json()["error"]["adapter_id"] == adapter
            assert int(response.headers["retry-after"]) > 0
        server.set_deadline(60)
        server.worker.predict_gate.set()
        assert (
            await client.post("/v1/predict", json={"adapter_id": adapter, "inputs": ["third"]})
        ).status_code == 200
        assert [job.prompts[0].text for job in server.worker.predicted] == ["first", "third"]

    server.run(scenario)


def test_a_waiter_that_leaves_does_not_cancel_the_adaptation_of_the_others(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.adapt_gate.clear()
        leaving = asyncio.create_task(client.post("/v1/adapters", json=CREATE))
        await until(lambda: len(server.worker.adapted) == 1)
        staying = asyncio.create_task(client.post("/v1/adapters", json=CREATE))
        await until(lambda: server.engine._registry.waiters == 2)
        leaving.cancel()
        await until(lambda: server.engine.in_flight == 1)
        server.worker.adapt_gate.set()
        assert (await staying).json()["cache"] == "joined"
        assert len(server.worker.adapted) == 1

    server.run(scenario)


def test_after_the_deadline_an_adaptation_lingers_for_its_grace_and_no_longer(tmp_path: Path) -> None:
    server = Server(tmp_path, deadline_seconds=0.3, cancel_grace_seconds=0.5)

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.adapt_gate.clear()
        started = time.monotonic()
        assert (await client.post("/v1/adapters", json=CREATE)).status_code == 504
        await server.engine.idle()  # it waits for adaptations in flight too
        assert 0.8 <= time.monotonic() - started < 5
        server.worker.adapt_gate.set()
        assert (await client.get("/v1/adapters")).json()["data"] == []

    server.run(scenario)


def test_pinned_adapters_stay_in_memory_and_must_fit(tmp_path: Path) -> None:
    adapter_bytes = 4 * flat_size(SITES, CONFIG.layout.rank)
    server = Server(tmp_path, adapter_memory_bytes=2 * adapter_bytes)
    reads: list[str] = []

    async def scenario(client: httpx.AsyncClient) -> None:
        ids = [(await client.post("/v1/adapters", json=other(seed))).json()["id"] for seed in range(4)]
        pinned = await client.post(f"/v1/adapters/{ids[0]}/pin")
        assert pinned.json() == {"id": ids[0], "object": "adapter", "pinned": True}
        for id in ids[1:]:
            assert (await client.get(f"/v1/adapters/{id}")).status_code == 200
        reads.clear()
        await client.get(f"/v1/adapters/{ids[0]}")
        assert reads == []
        assert (await client.post(f"/v1/adapters/{ids[1]}/pin")).status_code == 200
        refused = await client.post(f"/v1/adapters/{ids[2]}/pin")
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "limit_exceeded")
        unpinned = await client.post(f"/v1/adapters/{ids[0]}/unpin")
        assert unpinned.json()["pinned"] is False
        assert (await client.post(f"/v1/adapters/{ids[2]}/pin")).status_code == 200
        reads.clear()
        await client.get(f"/v1/adapters/{ids[0]}")
        assert reads == [ids[0]]
        for action in ("pin", "unpin"):
            unknown = await client.post(f"/v1/adapters/adp_00000000/{action}")
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_adapter")

    count_reads(server, reads)
    server.run(scenario)


def test_an_adapter_that_a_prediction_uses_stays_in_memory(tmp_path: Path) -> None:
    server = Server(tmp_path, adapter_memory_bytes=0)
    reads: list[str] = []

    async def scenario(client: httpx.AsyncClient) -> None:
        adapter = (await client.post("/v1/adapters", json=CREATE)).json()["id"]
        server.worker.predict_gate.clear()
        body = {"adapter_id": adapter, "inputs": ["x"]}
        working = asyncio.create_task(client.post("/v1/predict", json=body))
        await until(lambda: len(server.worker.predicted) == 1)
        reads.clear()
        assert (await client.get(f"/v1/adapters/{adapter}")).status_code == 200
        assert reads == []
        server.worker.predict_gate.set()
        assert (await working).status_code == 200
        await client.get(f"/v1/adapters/{adapter}")
        assert reads == [adapter]

    count_reads(server, reads)
    server.run(scenario)


def test_readers_of_one_adapter_share_one_read_from_disk(tmp_path: Path) -> None:
    adapter = Server(tmp_path).post("/v1/adapters", CREATE).json()["id"]
    server = Server(tmp_path)
    reads: list[str] = []

    async def scenario(client: httpx.AsyncClient) -> None:
        await asyncio.gather(*(client.get(f"/v1/adapters/{adapter}") for _ in range(5)))
        assert reads == [adapter]

    count_reads(server, reads)
    server.run(scenario)


def count_reads(server: Server, reads: list[str]) -> None:
    """Add the ids of adapters that are read from disk to `reads`."""
    get = server.store.get

    def counted(id: str) -> object:
        reads.append(id)
        return get(id)

    server.store.get = counted


def test_the_tenant_is_what_the_trusted_header_says(tmp_path: Path) -> None:
    """One request of a tenant is answered after at most one of another tenant's four."""
    server = Server(tmp_path, tenant_header="x-tenant")

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.adapt_gate.clear()

        def send(seed: int, tenant: str) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(
                client.post("/v1/adapters", json=other(seed), headers={"x-tenant": tenant})
            )

        heavy = [send(seed, "heavy") for seed in range(4)]
        await until(lambda: len(server.worker.adapted) == 1 and server.engine.workers()[0].jobs == 4)
        light = send(9, "light")
        await until(lambda: server.engine.workers()[0].jobs == 5)
        server.worker.adapt_gate.set()
        assert {(await request).status_code for request in [light, *heavy]} == {201}
        assert [job.seed for job in server.worker.adapted].index(9) <= 2

    server.run(scenario)


def test_without_a_worker_the_server_is_alive_but_not_ready(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        (worker,) = (await client.get("/v1/workers")).json()["data"]
        assert worker == {"name": "0", "state": "up", "restarts": 0, "jobs": 0}
        server.worker.fail = WorkerFatalError("the device is gone")
        for response in (await client.post("/v1/adapters", json=CREATE), await client.get("/readyz")):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "worker_lost")
            assert int(response.headers["retry-after"]) > 0
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/v1/workers")).json()["data"][0]["state"] == "down"
        assert 'abmll_worker_up{worker="0"} 0.0' in (await client.get("/metrics")).text

    server.run(scenario)


def test_health_answers_while_the_model_works(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.adapt_gate.clear()
        working = asyncio.create_task(client.post("/v1/adapters", json=CREATE))
        await until(lambda: len(server.worker.adapted) == 1)
        for path in (
            "/livez",
            "/readyz",
            "/metrics",
            "/v1/limits",
            "/v1/models",
            "/v1/version",
            "/v1/adapters",
        ):
            assert (await client.get(path)).status_code == 200, path
        assert not working.done()
        server.worker.adapt_gate.set()
        assert (await working).status_code == 201

    server.run(scenario)


def test_probes_are_logged_where_they_begin_to_fail(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "service.access")

    async def scenario(client: httpx.AsyncClient) -> None:
        found = [(await client.get("/readyz")).status_code for _ in range(3)]
        server.worker.load_gate.set()
        await server.app.state.loading
        found += [(await client.get("/readyz")).status_code for _ in range(2)]
        server.engine.drain()
        found += [(await client.get("/readyz")).status_code for _ in range(2)]
        assert found == [503, 503, 503, 200, 200, 503, 503]

    server.worker.load_gate.clear()
    server.run(scenario, ready=False)
    lines = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert ["GET /readyz 503" in line for line in lines] == [True, True]


def test_probes_follow_loading_serving_and_draining(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/livez")).status_code == 200
        for response in (await client.get("/readyz"), await client.post("/v1/adapters", json=CREATE)):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "starting")
            assert int(response.headers["retry-after"]) > 0
        server.worker.load_gate.set()
        await server.app.state.loading
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        server.worker.adapt_gate.clear()
        working = asyncio.create_task(client.post("/v1/adapters", json=CREATE))
        await until(lambda: len(server.worker.adapted) == 1)
        server.engine.drain()
        for response in (await client.get("/readyz"), await client.post("/v1/adapters", json=other(1))):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
            assert int(response.headers["retry-after"]) > 0
        assert (await client.get("/livez")).status_code == 200
        idle = asyncio.create_task(server.engine.idle())
        await asyncio.sleep(0.05)
        assert not idle.done()
        server.worker.adapt_gate.set()
        assert (await working).status_code == 201
        await idle

    server.worker.load_gate.clear()
    server.run(scenario, ready=False)


def test_the_error_of_a_model_that_cannot_be_loaded_hides_the_reason(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.worker.fail = RuntimeError("secret path")

    async def scenario(client: httpx.AsyncClient) -> None:
        with pytest.raises(RuntimeError, match="secret"):
            await server.app.state.loading
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "load_failed")
        assert "secret" not in response.text
        assert "retry-after" not in response.headers

    server.run(scenario, ready=False)


def test_delete_forgets_in_memory_and_on_disk(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        path = f"/v1/adapters/{(await client.post('/v1/adapters', json=CREATE)).json()['id']}"
        assert (await client.get(path)).status_code == 200
        deleted = await client.delete(path)
        assert deleted.json() == {"id": path.rpartition("/")[2], "object": "adapter", "deleted": True}
        for gone in (await client.get(path), await client.delete(path)):
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "unknown_adapter")
        assert (await client.get("/v1/adapters")).json()["data"] == []
        assert (await client.post("/v1/adapters", json=CREATE)).json()["cache"] == "miss"

    server.run(scenario)


def test_deleting_an_adapter_in_use_lets_its_predictions_finish(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        adapter = (await client.post("/v1/adapters", json=CREATE)).json()["id"]
        server.worker.predict_gate.clear()
        working = asyncio.create_task(
            client.post("/v1/predict", json={"adapter_id": adapter, "inputs": ["x"]})
        )
        await until(lambda: len(server.worker.predicted) == 1)
        assert (await client.delete(f"/v1/adapters/{adapter}")).status_code == 200
        server.worker.predict_gate.set()
        assert (await working).status_code == 200

    server.run(scenario)


def test_adapters_are_listed_in_pages_by_id(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        made = [(await client.post("/v1/adapters", json=other(seed))).json()["id"] for seed in range(5)]
        seen, after = [], None
        while True:
            page = (
                await client.get("/v1/adapters", params={"limit": 2} | ({"after": after} if after else {}))
            ).json()
            seen += [adapter["id"] for adapter in page["data"]]
            if not page["has_more"]:
                break
            after = seen[-1]
        assert seen == sorted(made)

    server.run(scenario)


def test_memory_is_bounded_in_bytes_and_dropped_adapters_come_back_from_disk(tmp_path: Path) -> None:
    server = Server(tmp_path, adapter_memory_bytes=100)  # an adapter of the fake model has 64 bytes

    async def scenario(client: httpx.AsyncClient) -> None:
        for seed in range(3):
            await client.post("/v1/adapters", json=other(seed))
        metrics = (await client.get("/metrics")).text
        assert "abmll_adapter_memory_bytes 64.0" in metrics
        assert "abmll_adapter_evictions_total 2.0" in metrics
        assert (await client.post("/v1/adapters", json=other(0))).json()["cache"] == "hit"
        assert len(server.worker.adapted) == 3

    server.run(scenario)


def test_an_adapter_of_another_posterior_is_refused(tmp_path: Path) -> None:
    adapter = Server(tmp_path).post("/v1/adapters", CREATE).json()["id"]
    changed = Server(tmp_path, FakeWorker(served_model(posterior_digest="e" * 64)))
    refused = changed.post("/v1/predict", {"adapter_id": adapter, "inputs": ["x"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "adapter_mismatch")
    assert changed.worker.predicted == []


def test_a_failure_of_the_model_is_a_500_that_tells_nothing_and_does_not_stick(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.fail = RuntimeError("secret path")
        failed = await client.post("/v1/predict", json=PREDICT)
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "internal_error"
        assert failed.json()["error"]["request_id"] == failed.headers["x-request-id"]
        assert "secret" not in failed.text
        server.worker.fail = None
        assert (await client.post("/v1/predict", json=PREDICT)).status_code == 200

    server.run(scenario)
