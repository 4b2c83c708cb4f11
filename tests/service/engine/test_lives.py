"""An adapter's life has one owner: deleting, using, pinning and calibrating cannot disagree.

The real store, registry, cache and journals, around a fake model.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from abmll.text.tasks import Example, Query
from service.engine.answering import Answering
from service.engine.requests import AdaptRequest, PredictRequest
from service.errors import InvalidRequestError
from service.gating.records import GateRequest
from tests.service.conftest import Server, until

OPTIONS = ["yes", "no"]
SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
CREATE: dict[str, Any] = {"support": SUPPORT, "options": OPTIONS}
EXAMPLES = [{"input": f"known {i}", "output": OPTIONS[i % 2]} for i in range(6)]


async def create(client: httpx.AsyncClient) -> str:
    return str((await client.post("/v1/adapters", json=CREATE)).json()["id"])


async def gone(client: httpx.AsyncClient, adapter: str) -> bool:
    """Whether no surface finds the adapter any more."""
    path = f"/v1/adapters/{adapter}"
    answers = [
        await client.get(path),
        await client.get(f"{path}/calibration"),
        await client.post(f"{path}/pin"),
        await client.post("/v1/predict", json={"adapter_id": adapter, "inputs": ["x"]}),
    ]
    listed = (await client.get("/v1/adapters")).json()["data"]
    return {a.status_code for a in answers} == {404} and adapter not in [row["id"] for row in listed]


def test_an_adapter_deleted_while_it_answers_stays_deleted(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        adapter = await create(client)
        server.worker.predict_gate.clear()
        asked = asyncio.create_task(client.post("/v1/predict", json={"adapter_id": adapter, "inputs": ["x"]}))
        await until(lambda: len(server.worker.predicted) == 1)
        assert (await client.delete(f"/v1/adapters/{adapter}")).status_code == 200
        server.worker.predict_gate.set()
        assert (await asked).status_code == 200
        assert await gone(client, adapter)
        again = await client.post("/v1/adapters", json=CREATE)
        assert (again.status_code, again.json()["cache"]) == (201, "miss")

    server.run(scenario)


def test_an_adapter_deleted_between_admission_and_work_stays_deleted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window in which a lease would put it back."""

    async def scenario(client: httpx.AsyncClient) -> None:
        adapter = await create(client)
        admit, deleted = Answering.admit, []

        async def admit_and_delete(*args: Any, **more: Any) -> Any:
            found = await admit(*args, **more)
            deleted.append((await client.delete(f"/v1/adapters/{adapter}")).status_code)
            return found

        monkeypatch.setattr(Answering, "admit", admit_and_delete)
        answer = await client.post("/v1/predict", json={"adapter_id": adapter, "inputs": ["x"]})
        assert (answer.status_code, deleted) == (200, [200])
        monkeypatch.setattr(Answering, "admit", admit)
        assert await gone(client, adapter)

    server.run(scenario)


def test_a_calibration_does_not_outlive_its_adapter(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        adapter = await create(client)
        path = f"/v1/adapters/{adapter}"
        server.worker.predict_gate.clear()
        calibrating = asyncio.create_task(client.post(f"{path}/calibrate", json={"examples": EXAMPLES}))
        await until(lambda: len(server.worker.predicted) == 1)
        assert (await client.delete(path)).status_code == 200
        server.worker.predict_gate.set()
        assert (await calibrating).status_code == 404
        assert await gone(client, adapter)
        assert await create(client) == adapter
        assert (await client.get(f"{path}/calibration")).json()["error"]["code"] == "calibration_missing"

    server.run(scenario)


def test_a_support_that_is_not_stored_has_no_calibrated_gate(server: Server) -> None:
    """The wire refuses it too; the engine does for callers in its own process."""
    examples = tuple(Example(row["input"], row["output"], tuple(OPTIONS)) for row in SUPPORT)
    request = PredictRequest(AdaptRequest(examples), (Query("x"),), gate=GateRequest(target_error=0.1))

    async def scenario(client: httpx.AsyncClient) -> None:
        with pytest.raises(InvalidRequestError, match="only a stored adapter has a calibration") as caught:
            await server.engine.predict(request)
        assert caught.value.param == "adapter_id"
        assert server.worker.adapted == []

    server.run(scenario)
