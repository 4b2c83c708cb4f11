"""Long adaptations of a server with keys: whose they are, who may end them, and what they cost."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.work import Speed, Work
from service.engine.requests import AdaptRequest, PredictRequest
from service.executors.contract import Prices
from service.principals.records import Limits, Principal, Scope
from tests.service.api.test_keys import Guarded, by, looks_each_time
from tests.service.conftest import until
from tests.service.engine.test_pricing import COUNTER, priced
from tests.service.engine.test_refining import SteppingWorker
from tests.service.engine.test_tenants import SUPPORT as EXAMPLES
from tests.service.fakes import FakeWorker, served_model

__all__ = ["looks_each_time"]
OPTIONS = ["yes", "no"]
SUPPORT = [{"input": f"input {i}", "output": OPTIONS[i % 2], "options": OPTIONS} for i in range(4)]
ADAPTERS, BEGIN = "/v1/adapters", {"wait_ms": 0}
LONG = {"wait_ms": 20_000}


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path, worker=SteppingWorker(), audit_log=tmp_path / "audit.jsonl")


async def begun(client: httpx.AsyncClient, headers: dict[str, str], **more: Any) -> str:
    answer = await client.post(ADAPTERS, json={"support": SUPPORT, **more}, params=BEGIN, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def audited(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (folder / "audit.jsonl").read_text().splitlines()]


def test_they_are_a_tenants_own_with_their_statuses_on_disk(guarded: Guarded, tmp_path: Path) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        one, two = by(guarded.one), by(guarded.two)
        guarded.worker.step_gate.clear()
        id = await begun(client, one)
        assert [path.parent.parent.name for path in tmp_path.rglob(f"{id}.json")] == ["one"]
        for method, what in (("GET", "progress"), ("GET", "events"), ("POST", "cancel")):
            answers = [
                await client.request(
                    method, f"{ADAPTERS}/{asked}/{what}", headers={**two, "x-request-id": "same"}
                )
                for asked in (id, f"adp_{'0' * 32}")
            ]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert answers[0].text.replace(id, "I") == answers[1].text.replace(f"adp_{'0' * 32}", "I")
        assert (await begun(client, two)) != id
        guarded.worker.step_gate.set()
        found = await client.get(f"{ADAPTERS}/{id}/progress", params=LONG, headers=one)
        assert found.json()["status"] == "succeeded"
        await until(lambda: len(audited(tmp_path)) == 2)  # the second is written after its fit

    guarded.play(work)
    rows = audited(tmp_path)
    assert sorted((row["tenant"], row["action"]) for row in rows) == [("one", "adapt"), ("two", "adapt")]
    assert rows[0]["key"] in {guarded.one.key.id, guarded.two.key.id}


def test_any_key_of_the_tenant_reads_progress_and_one_that_adapts_may_begin_and_cancel(
    guarded: Guarded,
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        guarded.worker.step_gate.clear()
        id = await begun(client, by(guarded.scoped[Scope.ADAPT]))
        for scope in (Scope.PREDICT, Scope.ADMIN):
            own = by(guarded.scoped[scope])
            refused = await client.post(ADAPTERS, json={"support": SUPPORT}, params=BEGIN, headers=own)
            assert refused.status_code == 403
            assert (await client.post(f"{ADAPTERS}/{id}/cancel", headers=own)).status_code == 403
            assert (await client.get(f"{ADAPTERS}/{id}/progress", headers=own)).status_code == 200
        ended = await client.post(f"{ADAPTERS}/{id}/cancel", headers=by(guarded.scoped[Scope.ADAPT]))
        assert ended.json()["status"] == "cancelled"
        guarded.worker.step_gate.set()

    guarded.play(work)


def test_a_revoked_key_ends_its_events(guarded: Guarded) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        guarded.worker.step_gate.clear()
        id = await begun(client, by(guarded.one))
        following = asyncio.create_task(client.get(f"{ADAPTERS}/{id}/events", headers=by(guarded.one)))
        await asyncio.sleep(0.1)
        guarded.write(revoked=guarded.one)
        guarded.worker.step_gate.set()
        text = (await following).text
        assert text.count("event: progress") >= 1
        assert "event: done" not in text
        assert "invalid_api_key" in text.strip().split("\n\n")[-1]

    guarded.play(work)


def spent(answer: httpx.Response) -> int:
    assert answer.status_code in (200, 201, 202), answer.text
    shown = answer.headers
    return int(shown["x-ratelimit-limit-units"]) - int(shown["x-ratelimit-remaining-units"])


def stepping(seconds: float) -> SteppingWorker:
    """Return a worker with which a token of a gradient step costs so many seconds, and nothing
    else.
    """
    prices = Prices(COUNTER, Speed(Work(learnt_tokens=seconds).amounts))
    return SteppingWorker(replace(served_model(), prices=prices))


def test_its_price_is_charged_once_and_so_is_that_of_what_refines_an_adapter(tmp_path: Path) -> None:
    limits = Limits(work_seconds_per_minute=600_000)
    worker = stepping(200.0)
    guarded = Guarded(
        tmp_path, limits, worker, deadline_seconds=1e6, long_deadline_seconds=1e6, queue_seconds=1e6
    )

    async def work(client: httpx.AsyncClient) -> None:
        one = by(guarded.one)

        async def post(body: dict[str, Any], **params: int) -> int:
            return spent(await client.post(ADAPTERS, json=body, params=params, headers=one))

        body = {"support": SUPPORT, "adapt": {"steps": 9}}
        guarded.worker.step_gate.clear()
        first = await post(body, wait_ms=0)
        assert first > 50_000  # of which 10,000 come back in a second
        assert await post(body, wait_ms=0) <= first
        waiting = asyncio.create_task(post(body))
        worker.step_gate.set()
        assert await waiting <= first
        before = await post(body, wait_ms=20_000)
        assert before <= first
        refining = {**body, "seed": 1, "adapt": {"steps": 9, "refine": True}}
        assert 0.8 * first < await post(refining, wait_ms=20_000) - before <= first
        await until(lambda: worker.steps == [9, 0, 9])
        assert await post(refining) <= before + first

    guarded.play(work)


def test_what_cannot_be_charged_is_not_begun(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, Limits(work_seconds_per_minute=1), stepping(1.0), deadline_seconds=1e6)

    async def work(client: httpx.AsyncClient) -> None:
        one = by(guarded.one)
        guarded.worker.step_gate.clear()
        await begun(client, one, adapt={"steps": 9})  # more than the limit, of a full bucket
        refused = await client.post(
            ADAPTERS, json={"support": SUPPORT, "adapt": {"steps": 8}}, params=BEGIN, headers=one
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        engine = await guarded.engine.of(Principal("one"))
        assert len(engine.long_adaptations) == 1
        guarded.worker.step_gate.set()

    guarded.play(work)


def test_rows_in_the_background_are_charged_and_take_no_room_of_requests(tmp_path: Path) -> None:
    limits = Limits(work_seconds_per_minute=1e9)
    guarded = Guarded(tmp_path, worker=FakeWorker(priced()), queue_seconds=1e6, deadline_seconds=1e6)

    async def work(client: httpx.AsyncClient) -> None:
        engine = await guarded.engine.of(Principal("one", limits=limits))
        asked = PredictRequest(AdaptRequest(EXAMPLES), (EXAMPLES[0].query,))
        guarded.worker.adapt_gate.clear()
        backlog = engine._traffic._backlog
        rows = asyncio.create_task(engine.predict(asked, background=True))
        await until(lambda: bool(guarded.worker.adapted))
        assert backlog.seconds == 0
        assert engine._own.meter._work.used > 0
        waiting = asyncio.create_task(engine.predict(replace(asked, queries=asked.queries * 2)))
        await until(lambda: backlog.seconds > 0)
        guarded.worker.adapt_gate.set()
        await asyncio.gather(rows, waiting)
        assert backlog.seconds == 0

    guarded.play(work)
