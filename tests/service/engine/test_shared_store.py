"""Two servers that share a store, a folder or S3: each sees what the other did, and nothing is
lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.s3_server import S3Server, answers_503, cuts_before
from tests.service.conftest import SCENARIO_SECONDS, Server
from tests.service.gating.calling import Caller, error, texts

Pair = Callable[[httpx.AsyncClient, httpx.AsyncClient], Awaitable[None]]
TARGET = {"target_coverage": 0.9}
QUESTION = {"type": "predicate", "name": "urgent", "instructions": "Is help needed at once?"}


def servers(root: Path, url: str, **settings: Any) -> tuple[Server, Server]:
    more = {"store_fresh_seconds": 0, "store_timeout_seconds": 20, **settings}
    one, two = (Server(root / name, store_url=url, **more) for name in ("one", "two"))
    return one, two


def run(pair: tuple[Server, Server], scenario: Pair) -> None:
    async def play() -> None:
        async with (
            asyncio.timeout(SCENARIO_SECONDS),
            pair[0].running() as one,
            pair[1].running() as two,
        ):
            await scenario(one, two)

    asyncio.run(play())


def test_what_one_server_makes_and_deletes_the_other_sees(store_url: str, tmp_path: Path) -> None:
    async def scenario(one: httpx.AsyncClient, two: httpx.AsyncClient) -> None:
        made = await Caller.of(one)
        other = Caller(two, made.id)
        assert await other.predictions(["x"]) == await made.predictions(["x"])
        again = await Caller.of(two)
        assert again.id == made.id
        assert pair[1].worker.adapted == []
        rows = (await two.get("/v1/adapters")).json()["data"]
        assert [row["id"] for row in rows] == [made.id]
        assert (await two.put("/v1/names/tickets", json={"adapter_id": made.id})).status_code == 200
        named = {"model": "tickets", "inputs": ["x"]}
        assert (await one.post("/v1/predict", json=named)).json()["model"] == "tickets@1"
        assert error(await one.delete(f"/v1/adapters/{made.id}"), 409)["code"] == "adapter_named"
        assert (await two.delete("/v1/names/tickets")).status_code == 200
        assert (await one.delete(f"/v1/adapters/{made.id}")).status_code == 200
        assert error(await other.ask(["x"]), 404)["code"] == "unknown_adapter", "also from its memory"
        assert error(await two.post("/v1/predict", json=named), 404)["code"] == "unknown_model"
        assert not list((tmp_path / "one").rglob("*.safetensors"))

    pair = servers(tmp_path, store_url)
    run(pair, scenario)


def test_names_that_two_servers_change_at_once_have_all_versions(store_url: str, tmp_path: Path) -> None:
    async def scenario(one: httpx.AsyncClient, two: httpx.AsyncClient) -> None:
        id = (await Caller.of(one)).id

        async def put(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
            return await client.put("/v1/names/tickets", json={"adapter_id": id, **more})

        answers = await asyncio.gather(*(put((one, two)[n % 2]) for n in range(8)))
        numbers = sorted(answer.json()["current"]["version"] for answer in answers)
        assert numbers == list(range(1, 9))
        for client in (one, two):
            assert len((await client.get("/v1/names/tickets")).json()["history"]) == 8
        raced = await asyncio.gather(*(put(client, if_version=8) for client in (one, two)))
        assert sorted(answer.status_code for answer in raced) == [200, 409]

    run(servers(tmp_path, store_url), scenario)


def test_of_outcomes_that_two_servers_add_at_once_none_is_lost(store_url: str, tmp_path: Path) -> None:
    async def scenario(one: httpx.AsyncClient, two: httpx.AsyncClient) -> None:
        here = await Caller.of(one)
        there = Caller(two, here.id)
        await here.calibrate(texts("first", 20))
        await asyncio.gather(
            *(caller.calibrate(texts(f"more {n}", 5)) for n, caller in enumerate((here, there, here, there)))
        )
        for caller in (here, there):
            assert (await caller.calibration()).json()["n"] == 40
        served = await asyncio.gather(
            *(
                caller.predictions([f"served {n}"], gate=TARGET)
                for n, caller in enumerate((here, there, here, there))
            )
        )
        crossed = zip((there, here, there, here), served, strict=True)
        labelled = await asyncio.gather(*(caller.label(rows, right=True) for caller, rows in crossed))
        assert [answer.json()["stored"] for answer in labelled] == [1, 1, 1, 1]
        twice = await there.label(served[1], right=False)
        assert twice.json()["stored"] == 0, "the first label stays, whoever has it"
        for caller in (here, there):
            calibration = (await caller.calibration()).json()
            assert (calibration["n"], calibration["monitoring"]["labelled"]) == (44, 4)
        assert (
            await here.post("calibrate", {"examples": await here.examples(["z"]), "replace": True})
        ).json()["n"] == 1
        assert (await there.calibration()).json()["n"] == 1
        assert (await there.client.delete(f"/v1/adapters/{here.id}/calibration")).status_code == 200
        assert error(await here.calibration())["code"] == "calibration_missing"

    run(servers(tmp_path, store_url, feedback_share=1.0), scenario)


def test_two_servers_that_shorten_a_journal_keep_the_labels_of_both(store_url: str, tmp_path: Path) -> None:
    async def scenario(one: httpx.AsyncClient, two: httpx.AsyncClient) -> None:
        here = await Caller.of(one)
        there = Caller(two, here.id)
        await here.calibrate(texts("first", 20))

        async def work(caller: Caller, name: str) -> None:
            for n in range(4):
                served = await caller.predictions([f"{name} {n}"], gate=TARGET)
                assert (await caller.label(served, right=True)).json()["stored"] == 1

        await asyncio.gather(work(here, "a"), work(there, "b"))
        for caller in (here, there):
            assert (await caller.calibration()).json()["monitoring"]["labelled"] == 8

    run(servers(tmp_path, store_url, feedback_share=1.0, max_logged=4), scenario)


@pytest.mark.parametrize("fault", [answers_503, cuts_before])
def test_a_store_that_fails_is_a_503_and_nothing_is_acknowledged(
    s3_url: str, s3: S3Server, tmp_path: Path, fault: Any
) -> None:
    async def scenario(one: httpx.AsyncClient, two: httpx.AsyncClient) -> None:
        here = await Caller.of(one)
        body = {"support": [{"input": "new", "output": "yes"}, {"input": "bad", "output": "no"}]}
        examples = await here.examples(texts("first", 5))
        with s3.failing(fault):
            answers = await asyncio.gather(
                one.post("/v1/adapters", json=body),
                here.post("calibrate", {"examples": examples}),
                one.put("/v1/names/tickets", json={"adapter_id": here.id}),
                here.ask(["x"]),
                one.get("/v1/adapters"),
            )
            assert (await one.get("/livez")).status_code == 200
            # What needs nothing of the store is answered.
            assert (await one.get("/readyz")).status_code == 200
            zero_shot = {"inputs": ["x"], "questions": [QUESTION]}
            assert (await one.post("/v1/decide", json=zero_shot)).status_code == 200
        for answer in answers:
            assert error(answer, 503)["code"] == "store_unavailable"
            assert int(answer.headers["retry-after"]) >= 1
        shown = (await one.get("/metrics")).text
        assert f'abmll_store_errors_total{{code="store_unavailable"}} {len(answers)}.0' in shown
        rows = (await two.get("/v1/adapters")).json()["data"]
        assert [row["id"] for row in rows] == [here.id]
        assert error(await here.calibration())["code"] == "calibration_missing"
        assert (await two.get("/v1/names")).json()["data"] == []
        assert (await one.post("/v1/adapters", json=body)).status_code == 201
        assert (await here.post("calibrate", {"examples": examples})).json()["n"] == 5

    run(servers(tmp_path, s3_url, store_timeout_seconds=1.5), scenario)
