"""`refine: true`: the instant adapter answers, the refined one is made in the background, names
move.

Through HTTP, with a worker that answers while adaptations of gradient steps are held.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.work import Speed, Work
from model_store.errors import StorageFullError
from service.executors.contract import AdaptJob, Prices, ServedModel
from tests.service.conftest import Server, until
from tests.service.engine.test_names import stopped
from tests.service.engine.test_pricing import COUNTER
from tests.service.fakes import FakeRun, FakeWorker, served_model

SUPPORT = [{"input": f"text {n}", "output": "yes" if n % 2 else "no"} for n in range(6)]
CREATE: dict[str, Any] = {"support": SUPPORT, "options": ["yes", "no"]}
REFINE = {**CREATE, "adapt": {"refine": True}}
ADAPTERS, PREDICT = "/v1/adapters", "/v1/predict"


class SteppingWorker(FakeWorker):
    """Worker that goes on with other work while `step_gate` holds adaptations of gradient steps.

    `refuse` is raised by these only.
    """

    def __init__(self, served: ServedModel | None = None) -> None:
        super().__init__(served)
        self.step_gate = threading.Event()
        self.step_gate.set()
        self.refuse: Exception | None = None

    def advance(self, runs: Sequence[FakeRun]) -> None:
        stepping = [run for run in runs if isinstance(run.job, AdaptJob) and run.job.settings.steps]
        if stepping and not self.step_gate.is_set():
            time.sleep(0.002)
            runs = [run for run in runs if run not in stepping]
        elif stepping and self.refuse:
            raise self.refuse
        super().advance(runs)

    @property
    def steps(self) -> list[int]:
        """The gradient steps of all adaptations that are done."""
        return [job.settings.steps for job in self.adapted]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, SteppingWorker())


def adapting(**adapt: Any) -> dict[str, Any]:
    return {**CREATE, "adapt": adapt}


async def create(client: httpx.AsyncClient, **adapt: Any) -> dict[str, Any]:
    answer = await client.post(ADAPTERS, json=adapting(**adapt))
    assert answer.status_code in (200, 201), answer.text
    return dict(answer.json())


async def put(client: httpx.AsyncClient, adapter_id: str, name: str = "tickets") -> httpx.Response:
    return await client.put(f"/v1/names/{name}", json={"adapter_id": adapter_id})


async def history(client: httpx.AsyncClient, name: str = "tickets") -> list[tuple[str, str | None]]:
    """Return the adapter and the note of each version, the first one first."""
    rows = (await client.get(f"/v1/names/{name}")).json()["history"]
    return [(row["adapter_id"], row.get("note")) for row in reversed(rows)]


async def refined(server: Server) -> None:
    """Let adaptations go on, and wait until none is left."""
    server.worker.step_gate.set()
    await until(lambda: not len(server.engine._refining))


def ended(server: Server, outcome: str) -> float:
    return server.metrics.refined.labels(outcome)._value.get()


def test_ids_are_those_of_requests_without_refine(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        adapt = {"steps": 3, "learning_rate": 0.01, "calibration_folds": 2}
        answer = await create(client, refine=True, **adapt)
        assert answer["cache"] == "miss"
        await refined(server)
        full, instant = await create(client, **adapt), await create(client, effort="instant")
        assert (answer["id"], answer["refines_to"]) == (instant["id"], full["id"])
        assert (instant["cache"], full["cache"]) == ("hit", "hit")
        assert (instant["diagnostics"]["steps"], full["diagnostics"]["steps"]) == (0, 3)
        assert ("held_out" in instant, full["held_out"]["n"]) == (False, 6)
        without = await create(client, effort="full", refine=False)
        assert without["id"] not in (instant["id"], full["id"])
        assert "refines_to" not in {**full, **instant, **without}

    server.run(scenario)


def test_the_instant_answer_comes_while_the_refined_adapter_is_made_and_names_then_move(
    server: Server,
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        other = (await create(client, steps=1))["id"]
        server.worker.step_gate.clear()
        first = (await client.post(PREDICT, json={**REFINE, "inputs": ["x"]})).json()
        instant, full = first["adapter_id"], first["refines_to"]
        assert server.worker.steps == [1, 0]
        for name in ("tickets", "mails", "moved-on"):
            assert (await put(client, instant, name)).json()["current"]["version"] == 1
        await put(client, other, "moved-on")
        await put(client, other, "another")
        named = {"model": "tickets", "inputs": ["x"]}
        before = (await client.post(PREDICT, json=named)).json()
        assert (before["adapter_id"], before["model"]) == (instant, "tickets@1")
        assert before["predictions"] == first["predictions"]
        await refined(server)
        assert await history(client) == [(instant, None), (full, "refined")]
        assert await history(client, "mails") == [(instant, None), (full, "refined")]
        assert await history(client, "moved-on") == [(instant, None), (other, None)]
        assert await history(client, "another") == [(other, None)]
        after = (await client.post(PREDICT, json=named)).json()
        assert (after["adapter_id"], after["model"]) == (full, "tickets@2")
        pinned = (await client.post(PREDICT, json={**named, "model": "tickets@1"})).json()
        assert pinned["predictions"] == before["predictions"] != after["predictions"]
        again = (await client.post(PREDICT, json={**REFINE, "inputs": ["x"]})).json()
        assert (again["adapter_id"], again["cache"], "refines_to" in again) == (full, "hit", False)
        assert again["predictions"] == after["predictions"]
        assert server.worker.steps == [1, 0, server.worker.served.defaults.steps]
        assert ended(server, "done") == 1

    server.run(scenario)


def test_what_is_asked_for_an_adapter_that_is_being_made_is_404_with_a_time(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        full = (await create(client, refine=True))["refines_to"]
        message = f"adapter {full} is being made and not there yet: ask again in 1 s"
        for answer, param in (
            (await client.get(f"{ADAPTERS}/{full}"), "adapter_id"),
            (await put(client, full), "adapter_id"),
            (await client.delete(f"{ADAPTERS}/{full}"), "adapter_id"),
            (await client.post(PREDICT, json={"adapter_id": full, "inputs": ["x"]}), "adapter_id"),
            (await client.post(PREDICT, json={"model": full, "inputs": ["x"]}), "model"),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (404, "1")
            error = answer.json()["error"]
            assert (error["message"], error["param"]) == (message, param)
        assert [row["id"] for row in (await client.get(ADAPTERS)).json()["data"]] != [full]
        await refined(server)
        assert (await client.get(f"{ADAPTERS}/{full}")).status_code == 200
        assert (await put(client, full)).json()["current"]["version"] == 1
        unknown = await client.get(f"{ADAPTERS}/adp_0")
        assert (unknown.status_code, "retry-after" in unknown.headers) == (404, False)

    server.run(scenario)


def priced_server(root: Path, **settings: Any) -> Server:
    """Return a server that counts a second for a token of a gradient step, and nothing else."""
    prices = Prices(COUNTER, Speed(Work(learnt_tokens=1.0).amounts))
    return Server(root, SteppingWorker(replace(served_model(), prices=prices)), **settings)


@pytest.mark.parametrize(("steps", "least", "most"), [(1, 50, 54), (9, 60, 60)])
def test_the_price_says_when_to_ask_again_and_is_no_matter_of_the_deadline(
    tmp_path: Path, steps: int, least: int, most: int
) -> None:
    server = priced_server(tmp_path, deadline_seconds=20)

    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await client.post(ADAPTERS, json=adapting(steps=steps))
        assert refused.json()["error"]["code"] == "price_exceeds_deadline"
        server.worker.step_gate.clear()
        full = (await create(client, steps=steps, refine=True))["refines_to"]
        asked = await client.get(f"{ADAPTERS}/{full}")
        assert least <= int(asked.headers["retry-after"]) <= most
        await refined(server)
        assert (await client.get(f"{ADAPTERS}/{full}")).status_code == 200

    server.run(scenario)


def test_equal_requests_make_one_and_a_later_one_without_refine_joins(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        answers = await asyncio.gather(*(create(client, refine=True) for _ in range(4)))
        assert len({(answer["id"], answer["refines_to"]) for answer in answers}) == 1
        waiting = asyncio.create_task(create(client))
        await until(lambda: server.engine._registry.waiters == 2)
        await put(client, answers[0]["id"])
        await refined(server)
        joined = await waiting
        assert (joined["id"], joined["cache"]) == (answers[0]["refines_to"], "joined")
        assert sorted(server.worker.steps) == [0, server.worker.served.defaults.steps]
        assert await history(client) == [(answers[0]["id"], None), (joined["id"], "refined")]

    server.run(scenario)


def test_a_refined_adapter_outlives_the_request_that_had_begun_it(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        leaving = asyncio.create_task(client.post(ADAPTERS, json=CREATE))
        await until(lambda: server.engine._registry.waiters == 1)
        full = (await create(client, refine=True))["refines_to"]
        await until(lambda: server.engine._registry.waiters == 2)
        leaving.cancel()
        await until(lambda: server.engine.in_flight == 0)
        await refined(server)
        assert (await client.get(f"{ADAPTERS}/{full}")).status_code == 200

    server.run(scenario)


def test_of_two_refined_adapters_of_one_instant_one_the_first_moves_the_names(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        answers = [await create(client, steps=steps, refine=True) for steps in (1, 2)]
        assert answers[0]["id"] == answers[1]["id"]
        await put(client, answers[0]["id"])
        await refined(server)
        (_, note), (last, moved) = await history(client)
        assert (note, moved) == (None, "refined")
        assert last in [answer["refines_to"] for answer in answers]
        assert ended(server, "done") == 2

    server.run(scenario)


def test_where_the_refined_adapter_is_there_already_nothing_goes_on_and_no_name_moves(
    server: Server,
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        full, instant = await create(client), await create(client, effort="instant")
        await put(client, instant["id"])
        answer = await create(client, refine=True)
        assert (answer["id"], answer["cache"], "refines_to" in answer) == (full["id"], "hit", False)
        assert len(server.engine._refining) == 0
        assert await history(client) == [(instant["id"], None)]

    server.run(scenario)


def test_an_instant_adapter_may_be_deleted_meanwhile(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        answer = await create(client, refine=True)
        assert (await client.delete(f"{ADAPTERS}/{answer['id']}")).status_code == 200
        await refined(server)
        assert (await client.get(f"{ADAPTERS}/{answer['refines_to']}")).status_code == 200

    server.run(scenario)


def test_a_failure_leaves_the_names_and_the_next_request_tries_again(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        first = await create(client, refine=True)
        instant, full = first["id"], first["refines_to"]
        await put(client, instant)
        server.worker.refuse = ValueError("not today")
        await refined(server)
        assert (ended(server, "failed"), ended(server, "done")) == (1, 0)
        assert f"adapter {instant} was not refined to {full}: not today" in caplog.text
        assert await history(client) == [(instant, None)]
        gone = await client.get(f"{ADAPTERS}/{full}")
        assert (gone.status_code, "retry-after" in gone.headers) == (404, False)
        server.worker.refuse = None
        again = await create(client, refine=True)
        assert (again["id"], again["cache"], again["refines_to"]) == (instant, "hit", full)
        await refined(server)
        assert await history(client) == [(instant, None), (full, "refined")]

    server.run(scenario)


def test_a_name_that_cannot_be_stored_stays_and_is_counted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageFullError("the disk is full")

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        answer = await create(client, refine=True)
        await put(client, answer["id"])
        monkeypatch.setattr(server.engine.names._store, "put", full)
        await refined(server)
        assert ended(server, "failed") == 1
        assert await history(client) == [(answer["id"], None)]
        assert (await client.get(f"{ADAPTERS}/{answer['refines_to']}")).status_code == 200

    server.run(scenario)


def test_a_drain_waits_for_the_refined_adapter(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        answer = await create(client, refine=True)
        await put(client, answer["id"])
        server.engine.drain()
        idle = asyncio.create_task(server.engine.idle())
        await asyncio.sleep(0.05)
        assert not idle.done()
        server.worker.step_gate.set()
        await idle
        assert await history(client) == [(answer["id"], None), (answer["refines_to"], "refined")]

    server.run(scenario)


def test_the_end_of_the_server_waits_for_a_name_that_moves(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        answer = await create(client, refine=True)
        await put(client, answer["id"])
        waiting, go = stopped(server, monkeypatch, "put")
        server.worker.step_gate.set()
        await until(lambda: bool(waiting))
        closing = asyncio.create_task(server.engine.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        go.set()
        await closing
        assert await history(client) == [(answer["id"], None), (answer["refines_to"], "refined")]

    server.run(scenario)


def test_after_a_restart_nothing_is_lost_and_the_refined_adapter_can_be_had_again(tmp_path: Path) -> None:
    first = Server(tmp_path, SteppingWorker())
    answers: list[dict[str, Any]] = []

    async def before(client: httpx.AsyncClient) -> None:
        first.worker.step_gate.clear()
        answers.append(await create(client, refine=True))
        assert (await put(client, answers[0]["id"])).status_code == 200

    first.run(before)
    assert (ended(first, "dropped"), first.worker.steps) == (1, [0])
    second = Server(tmp_path, SteppingWorker())

    async def after(client: httpx.AsyncClient) -> None:
        instant, full = answers[0]["id"], answers[0]["refines_to"]
        assert (await client.get(f"{ADAPTERS}/{full}")).status_code == 404
        assert await history(client) == [(instant, None)]
        again = await create(client, refine=True)
        assert (again["id"], again["cache"], again["refines_to"]) == (instant, "hit", full)
        await refined(second)
        assert await history(client) == [(instant, None), (full, "refined")]

    second.run(after)


def test_each_refined_adapter_in_the_making_takes_a_place_of_the_queue(tmp_path: Path) -> None:
    server = Server(tmp_path, SteppingWorker(), queue_limit=2)

    async def scenario(client: httpx.AsyncClient) -> None:
        server.worker.step_gate.clear()
        await create(client, steps=1, refine=True)
        beside = asyncio.create_task(create(client, steps=3))
        await until(lambda: server.engine.in_flight == 1)
        refused = await client.post(ADAPTERS, json=adapting(effort="instant"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        await refined(server)
        await beside
        assert (await create(client, effort="instant"))["cache"] == "hit"

    server.run(scenario)


@pytest.mark.parametrize("adapt", [{"effort": "instant"}, {"effort": "instant", "calibration_folds": 2}])
def test_an_instant_adapter_has_nothing_to_refine(server: Server, adapt: dict[str, Any]) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await client.post(ADAPTERS, json=adapting(refine=True, **adapt))
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (
            422,
            "invalid_request",
            "adapt.refine",
        )
        assert "takes no gradient step" in error["message"]
        assert server.worker.adapted == []

    server.run(scenario)


def test_folds_are_the_refined_adapters_own(server: Server) -> None:
    body = {**adapting(refine=True, calibration_folds=2), "inputs": ["x"]}

    async def kind(client: httpx.AsyncClient) -> str:
        (prediction,) = (await client.post(PREDICT, json=body)).json()["predictions"]
        return str(prediction["confidence_kind"])

    async def scenario(client: httpx.AsyncClient) -> None:
        assert await kind(client) == "predictive"
        await refined(server)
        assert await kind(client) == "calibrated"

    server.run(scenario)
