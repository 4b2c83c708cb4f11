"""Admission in seconds of work: bounds for all and by tenant, honest times, refusals before tokens."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.text.tasks import Example, Query
from abmll.work import Speed, Work
from service.engine.backlog import Backlog
from service.engine.estimates import Estimates, Size
from service.engine.pricing import Price
from service.engine.requests import AdaptRequest, PredictRequest
from service.errors import QueueFullError
from service.executors.contract import Prices
from tests.service.conftest import Server, until
from tests.service.engine.test_diagnose import OPTIONS, SUPPORT
from tests.service.engine.test_pricing import COUNTER
from tests.service.fakes import FakeEncoder, FakeWorker, served_model


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def backlog(limit: float = 10, workers: int = 1) -> tuple[Backlog, Clock, list[float]]:
    clock, shown = Clock(), list[float]()
    return Backlog(limit, workers, "queue_seconds", shown.append, clock), clock, shown


def full(owner: Backlog, tenant: str, seconds: float) -> QueueFullError:
    with pytest.raises(QueueFullError) as refused:
        owner.check(tenant, seconds)
    return refused.value


def test_the_sum_is_bounded_but_an_empty_backlog_takes_anything() -> None:
    owner, _, shown = backlog()
    with owner.reserve("a", 50):
        message = full(owner, "a", 1).message
        assert "about 1 s, and 50 s of this tenant's work wait or run" in message
        assert "within 10 s of all tenants, who have equal parts (setting queue_seconds)" in message
    with owner.reserve("a", 6), owner.reserve("a", 4):
        full(owner, "a", 0.1)
        owner.check("a", 0.0)
    assert shown == [50, 0, 6, 10, 6, 0]
    owner.check("a", 10)


def test_tenants_have_equal_parts_once_a_second_one_was_there() -> None:
    owner, clock, _ = backlog()
    with owner.reserve("heavy", 5), owner.reserve("heavy", 4):
        full(owner, "light", 2)  # no room now, but from now on half of it is not for the other
        message = full(owner, "heavy", 0.5).message
        assert "about 0.5 s, and 9 s of this tenant's work" in message
        assert "about 2 s, and 0 s of this tenant's work" in full(owner, "light", 2).message
        with owner.reserve("light", 1):
            full(owner, "light", 0.5)
        clock.now = 61
        owner.check("heavy", 1)


def test_a_price_above_its_estimate_has_to_have_room_too() -> None:
    owner, _, _ = backlog()
    with owner.reserve("a", 1) as alone:
        alone.correct(100)
        alone.correct(8)
        with owner.reserve("a", 1) as other:
            other.correct(2)
            with pytest.raises(QueueFullError):
                other.correct(3)
            other.correct(0.5)
            assert owner.seconds == 8.5
    assert owner.seconds == 0


def test_the_time_to_come_back_is_that_of_the_excess_at_the_measured_speed() -> None:
    owner, clock, _ = backlog(limit=100, workers=2)
    with owner.reserve("a", 100):
        assert (
            10 <= (full(owner, "a", 20).retry_after_seconds or 0) <= 15
        )  # two workers: 2 s of work a second
    for _ in range(20):  # now it takes four times as long as its price
        with owner.reserve("a", 10):
            clock.now += 40
    with owner.reserve("a", 100):
        assert 37 <= (full(owner, "a", 10).retry_after_seconds or 0) <= 60
        assert full(owner, "a", 0.01).retry_after_seconds in (1, 2)
        assert (full(owner, "a", 10_000).retry_after_seconds or 0) <= 60


def test_an_estimate_learns_from_prices() -> None:
    served = priced(0.001)
    asked = PredictRequest("adp_1", (Query("x" * 100, ("yes", "no")),))
    size, estimates = Size.of(asked, served), Estimates()
    assert size.predict == 16 * 105
    first = estimates.seconds(size, served)
    assert first > 0
    for _ in range(100):
        estimates.learn(size, Price(0.0, 3.0))
    assert estimates.seconds(size, served) == pytest.approx(3.0, rel=1e-3)
    assert estimates.seconds(size, served_model()) == 0.0
    support = (Example("x" * 10, "yes", ("yes", "no")),)
    one, five = (Size.of(AdaptRequest(support, calibration_folds=folds), served).adapt for folds in (None, 4))
    assert five == 5 * one > 0


def priced(seconds: float) -> Any:
    """Return a served model that takes `seconds` for a token under a sample or in a gradient step."""
    speed = Speed(Work(sampled_tokens=seconds, learnt_tokens=seconds).amounts)
    return replace(served_model(), prices=Prices(COUNTER, speed))


class CountingEncoder(FakeEncoder):
    def __init__(self) -> None:
        self.calls = 0

    def encode(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        return super().encode(*given, **named)


CREATE = {
    "support": [{"input": "a" * 50, "output": "yes"}, {"input": "b", "output": "no"}],
    "options": ["yes", "no"],
}


def test_what_has_no_room_is_refused_at_once_and_without_tokens(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    worker = FakeWorker(replace(priced(0.001), encoder=encoder))
    server = Server(tmp_path, worker, queue_seconds=1, long_deadline_seconds=20)

    async def scenario(client: httpx.AsyncClient) -> None:
        adapter_id = (await client.post("/v1/adapters", json=CREATE)).json()["id"]
        worker.predict_gate.clear()
        body = {"adapter_id": adapter_id, "inputs": ["x" * 200]}
        first = asyncio.create_task(client.post("/v1/predict", json=body))
        await until(lambda: len(worker.predicted) == 1)
        before, seconds = encoder.calls, []
        for path, more in (
            ("/v1/predict", {}),
            ("/v1/predict", {"stream": True}),
            ("/v1/decide", {"questions": [{"type": "predicate", "name": "q", "instructions": "is it?"}]}),
        ):
            started = time.perf_counter()
            refused = await client.post(path, json={**body, **more})
            seconds.append(time.perf_counter() - started)
            assert refused.status_code == 429, refused.text
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert "(setting queue_seconds)" in refused.json()["error"]["message"]
        assert min(seconds) < 0.05
        assert encoder.calls == before
        small = asyncio.create_task(client.post("/v1/predict", json={"adapter_id": adapter_id, "inputs": []}))
        assert (await small).status_code == 422
        worker.predict_gate.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/predict", json=body)).status_code == 200
        page = (await client.get("/metrics")).text
        assert 'abmll_waiting_work_seconds{pool="request"} 0.0' in page

    server.run(scenario)


def test_a_diagnosis_has_its_place_in_the_backlog_until_it_ends(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    worker = FakeWorker(replace(priced(0.001), encoder=encoder))
    server = Server(tmp_path, worker, queue_seconds=1)
    create = {**CREATE, "support": SUPPORT, "options": OPTIONS}

    async def scenario(client: httpx.AsyncClient) -> None:
        adapter_id = (await client.post("/v1/adapters", json=create)).json()["id"]
        predict = {"adapter_id": adapter_id, "inputs": ["x" * 200]}
        worker.predict_gate.clear()
        first = asyncio.create_task(client.post("/v1/predict", json=predict))
        await until(lambda: len(worker.predicted) == 1)
        before = encoder.calls
        refused = await client.post(f"/v1/adapters/{adapter_id}/diagnose", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert encoder.calls == before
        worker.predict_gate.set()
        assert (await first).status_code == 200

        worker.adapt_gate.clear()  # an empty backlog takes anything, and then nothing more
        made = len(worker.adapted)
        diagnosing = asyncio.create_task(client.post(f"/v1/adapters/{adapter_id}/diagnose", json={}))
        await until(lambda: len(worker.adapted) > made)
        page = (await client.get("/metrics")).text
        (waiting,) = [
            row for row in page.splitlines() if row.startswith('abmll_waiting_work_seconds{pool="r')
        ]
        folds = 5
        assert float(waiting.split()[1]) > folds * 0.001 * 30 * len(SUPPORT)
        assert (await client.post("/v1/predict", json=predict)).status_code == 429
        worker.adapt_gate.set()
        assert (await diagnosing).status_code == 200
        assert (await client.post("/v1/predict", json=predict)).status_code == 200

    server.run(scenario)


def test_long_adaptations_have_a_bound_of_their_own(tmp_path: Path) -> None:
    worker = FakeWorker(priced(0.02))
    server = Server(tmp_path, worker, queue_seconds=2, long_deadline_seconds=20)

    async def scenario(client: httpx.AsyncClient) -> None:
        worker.adapt_gate.clear()
        answers = [
            await client.post("/v1/adapters", params={"wait_ms": 0}, json={**CREATE, "seed": seed})
            for seed in range(6)
        ]
        assert [answer.status_code for answer in answers][:2] == [202, 202]
        assert answers[-1].status_code == 429
        assert "(setting long_deadline_seconds)" in answers[-1].json()["error"]["message"]
        worker.adapt_gate.set()
        await until(lambda: len(server.engine.long_adaptations) == 0)

    server.run(scenario)
