"""Several tenants at one server: none keeps the others out by requests, or by what goes on without
a client.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.principals.records import Limits
from tests.service.api.test_keys import SUPPORT, Guarded, by
from tests.service.conftest import until
from tests.service.engine.test_refining import SteppingWorker


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path, worker=SteppingWorker(), queue_limit=8)


def create(client: httpx.AsyncClient, key: Any, seed: int, **params: Any) -> Any:
    return client.post(
        "/v1/adapters", json={"support": SUPPORT, "seed": seed}, headers=by(key), params=params
    )


def test_what_goes_on_without_a_client_leaves_places_for_the_requests_of_others(guarded: Guarded) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        guarded.worker.step_gate.clear()
        answers = [await create(client, guarded.one, seed, wait_ms=0) for seed in range(8)]
        assert [answer.status_code for answer in answers] == [202, 202] + [429] * 6
        assert answers[-1].json()["error"]["code"] == "queue_full"
        assert int(answers[-1].headers["retry-after"]) > 0
        # what goes on already is told, not refused
        assert (await create(client, guarded.one, 0, wait_ms=0)).status_code == 202
        mine = [await create(client, guarded.two, seed, wait_ms=0) for seed in range(2)]
        assert mine[0].status_code == 202
        assert (await client.get("/v1/models", headers=by(guarded.two))).status_code == 200
        guarded.worker.step_gate.set()

    guarded.play(work)


def test_refined_adapters_in_the_making_leave_places_too(guarded: Guarded) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        guarded.worker.step_gate.clear()
        statuses = []
        for seed in range(5):
            body = {"support": SUPPORT, "seed": seed, "adapt": {"steps": 1, "refine": True}}
            answer = await client.post("/v1/adapters", json=body, headers=by(guarded.one))
            statuses.append(answer.status_code)
        assert statuses == [201, 201, 429, 429, 429]
        guarded.worker.step_gate.set()

    guarded.play(work)


def test_a_tenant_that_was_refused_has_a_part_of_the_places_from_then_on(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, queue_limit=4)

    async def work(client: httpx.AsyncClient) -> None:
        guarded.worker.adapt_gate.clear()
        theirs = [asyncio.create_task(create(client, guarded.one, seed)) for seed in range(4)]
        await until(lambda: guarded.engine.in_flight == 4)
        assert (await create(client, guarded.two, 0)).status_code == 429
        theirs[0].cancel()
        await until(lambda: guarded.engine.in_flight == 3 and guarded.engine._background() == 3)
        again = await create(client, guarded.one, 9)
        assert (again.status_code, again.json()["error"]["code"]) == (429, "queue_full")
        assert "this tenant has 3 requests; the limit is 4, and while others wait 2" in again.text
        mine = asyncio.create_task(create(client, guarded.two, 0))
        await until(lambda: guarded.engine.in_flight == 4)
        guarded.worker.adapt_gate.set()
        assert (await mine).status_code == 201
        await asyncio.gather(*theirs, return_exceptions=True)

    guarded.play(work)


@pytest.mark.parametrize("wait_ms", [None, 20_000])
def test_requests_at_once_get_no_more_adapters_than_their_tenant_may_have(
    tmp_path: Path, wait_ms: int | None
) -> None:
    guarded = Guarded(tmp_path, Limits(adapters=3), SteppingWorker())
    params = {} if wait_ms is None else {"wait_ms": wait_ms}

    async def work(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(create(client, guarded.one, seed, **params) for seed in range(9)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [201] * 3 + [429] * 6
        assert {a.json()["error"]["code"] for a in answers if a.status_code == 429} == {"quota_exceeded"}
        assert len((await client.get("/v1/adapters", headers=by(guarded.one))).json()["data"]) == 3

    guarded.play(work)
