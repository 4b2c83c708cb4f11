"""`POST /v1/adapters/{id}/readapt`: new adapters of stored examples, by the default posterior.

Through HTTP, with a fake worker; `test_several_posteriors.py` does it with a model.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.adaptation.settings import AdaptSettings
from model_store.errors import StorageFullError
from service.executors.contract import ServedModel
from tests.service.conftest import Server, until
from tests.service.fakes import FakeWorker, served_model

OLD = replace(served_model("e" * 64), posterior_id="old-posterior", defaults=AdaptSettings(steps=4))
NEW = served_model()
BOTH = replace(NEW, others=(OLD,))
SUPPORT = [{"input": f"text {n}", "output": "yes" if n % 2 else "no"} for n in range(6)]
CREATE: dict[str, Any] = {"support": SUPPORT, "options": ["yes", "no"]}
CASES: dict[str, Any] = {
    "questions": [{"name": "late", "type": "predicate", "instructions": "Is it late?"}],
    "cases": [{"input": f"case {n}", "answers": {"late": n % 2 == 0}} for n in range(4)],
}
# So many rows that the steps of `full` grow with them: from 4 and from 6 to 10.
MANY: dict[str, Any] = {
    "questions": [*CASES["questions"], {"name": "far", "type": "predicate", "instructions": "Is it far?"}],
    "cases": [{"input": f"case {n}", "answers": {"late": n % 2 == 0, "far": n % 3 == 0}} for n in range(40)],
}
LABELLED = [{"input": f"labelled {n}", "output": "yes" if n % 3 else "no"} for n in range(8)]


def server_of(root: Path, served: ServedModel, **settings: Any) -> Server:
    return Server(root, FakeWorker(served), **settings)


def made_before(root: Path, *bodies: dict[str, Any], **settings: Any) -> list[str]:
    """Make adapters in a server of the old posterior, and return their ids."""
    server, ids = server_of(root, OLD, **settings), list[str]()

    async def scenario(client: httpx.AsyncClient) -> None:
        for body in bodies or [CREATE]:
            ids.append((await client.post("/v1/adapters", json=body)).json()["id"])

    server.run(scenario)
    return ids


async def readapt(client: httpx.AsyncClient, id: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(f"/v1/adapters/{id}/readapt", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def put(client: httpx.AsyncClient, name: str, id: str) -> None:
    assert (await client.put(f"/v1/names/{name}", json={"adapter_id": id})).status_code == 200


async def history(client: httpx.AsyncClient, name: str) -> list[tuple[str, str | None]]:
    rows = (await client.get(f"/v1/names/{name}")).json()["history"]
    return [(row["adapter_id"], row.get("note")) for row in reversed(rows)]


ADAPTS: list[dict[str, Any]] = [
    {}, {"effort": "fast"}, {"effort": "instant"}, {"steps": 3}, {"calibration_folds": 3, "beta": 0.5},
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "adapt"), [*itertools.product([CREATE, CASES], ADAPTS), (MANY, {}), (MANY, {"steps": 9})]
)
def test_the_new_adapter_is_that_of_the_same_request(
    tmp_path: Path, body: dict[str, Any], adapt: dict[str, Any]
) -> None:
    """An effort stays an effort, so it has the steps of the new posterior; numbers stay numbers."""
    asked = {**body, "adapt": adapt, "seed": 3}
    (old,) = made_before(tmp_path / "one", asked)
    fresh, found = server_of(tmp_path / "other", NEW), dict[str, Any]()

    async def make(client: httpx.AsyncClient) -> None:
        if "beta" in adapt or "steps" in adapt:  # then all numbers are those of the old defaults
            settings = {"learning_rate": 1e-3, "batch_size": 8, "steps": 4, "beta": 0.0, **adapt}
            asked["adapt"] = settings
        found["fresh"] = (await client.post("/v1/adapters", json=asked)).json()

    async def scenario(client: httpx.AsyncClient) -> None:
        done = await readapt(client, old)
        found["done"], found["again"] = done, await readapt(client, old)
        found["new"] = (await client.get(f"/v1/adapters/{done['new_adapter_id']}")).json()

    fresh.run(make)
    server_of(tmp_path / "one", BOTH).run(scenario)
    done, new = found["done"], found["new"]
    assert (done["new_adapter_id"], done["posterior"]) == (found["fresh"]["id"], NEW.posterior_id)
    assert (done["cache"], found["again"]["cache"]) == ("miss", "hit")
    assert {**new, "created": ""} == {**{k: found["fresh"][k] for k in new}, "created": ""}


def test_names_move_with_their_history_and_the_answer_says_which_lose_a_certificate(tmp_path: Path) -> None:
    one, other = made_before(tmp_path, CREATE, {**CREATE, "seed": 1})

    async def scenario(client: httpx.AsyncClient) -> None:
        for name in ("tickets", "mails"):
            await put(client, name, one)
        await put(client, "moved-on", one)
        await put(client, "moved-on", other)
        labelled = {"examples": LABELLED, "samples": 4}
        assert (await client.post(f"/v1/adapters/{one}/calibrate", json=labelled)).status_code == 200
        before = (await client.post("/v1/predict", json={"model": "tickets", "inputs": ["x"]})).json()

        looked = await readapt(client, one, dry_run=True)
        new = looked["new_adapter_id"]
        assert (sorted(looked["names"]), looked["loses_calibration"]) == (["mails", "tickets"], True)
        assert (looked["made_already"], "cache" in looked) == (False, False)
        assert (await client.get(f"/v1/adapters/{new}")).status_code == 404
        assert await history(client, "tickets") == [(one, None)]

        kept = await readapt(client, one, move_names=False)
        assert (kept["new_adapter_id"], kept["names"]) == (new, [])
        assert await history(client, "tickets") == [(one, None)]

        done = await readapt(client, one)
        note = f"readapted from {one}"
        assert (sorted(done["names"]), done["loses_calibration"]) == (["mails", "tickets"], True)
        for name in ("tickets", "mails"):
            assert await history(client, name) == [(one, None), (new, note)]
        assert await history(client, "moved-on") == [(one, None), (other, None)]
        after = (await client.post("/v1/predict", json={"model": "tickets", "inputs": ["x"]})).json()
        pinned = (await client.post("/v1/predict", json={"model": "tickets@1", "inputs": ["x"]})).json()
        assert (after["adapter_id"], pinned["predictions"]) == (new, before["predictions"])
        certified = {"model": "tickets", "inputs": ["x"], "gate": {"target_error": 0.3}}
        assert (await client.post("/v1/predict", json=certified)).json()["error"][
            "code"
        ] == "calibration_missing"
        await client.post(f"/v1/adapters/{new}/calibrate", json=labelled)
        assert (await readapt(client, one))["loses_calibration"] is False
        rolled = await client.post("/v1/names/tickets/rollback", json={"version": 1})
        assert rolled.json()["current"]["adapter_id"] == one

    server_of(tmp_path, BOTH).run(scenario)


def test_an_adapter_of_the_default_posterior_is_left_alone(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = (await client.post("/v1/adapters", json=CREATE)).json()["id"]
        await put(client, "tickets", id)
        done = await readapt(client, id)
        assert (done["new_adapter_id"], done["names"], "cache" in done) == (id, [], False)
        assert await history(client, "tickets") == [(id, None)]

    server = server_of(tmp_path, BOTH)
    server.run(scenario)
    assert len(server.worker.adapted) == 1


def test_without_the_old_posterior_it_works_too_and_numbers_stay(tmp_path: Path) -> None:
    (old,) = made_before(tmp_path, CREATE)

    async def scenario(client: httpx.AsyncClient) -> None:
        new = (await readapt(client, old))["new_adapter_id"]
        shown = (await client.get(f"/v1/adapters/{new}")).json()
        assert (shown["posterior"], shown["diagnostics"]["steps"]) == (NEW.posterior_id, OLD.defaults.steps)
        refused = await client.post("/v1/predict", json={"adapter_id": old, "inputs": ["x"]})
        assert refused.json()["error"]["code"] == "adapter_mismatch"

    server_of(tmp_path, NEW).run(scenario)


def test_adapters_without_texts_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    (old,) = made_before(tmp_path, CREATE, store_support="digest")

    async def scenario(client: httpx.AsyncClient) -> None:
        for body in ({}, {"dry_run": True}):
            refused = await client.post(f"/v1/adapters/{old}/readapt", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "texts_not_stored")
            assert "store_support" in refused.json()["error"]["message"]
        unknown = await client.post("/v1/adapters/adp_0000000000000000/readapt")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_adapter")

    server_of(tmp_path, BOTH).run(scenario)


def test_what_is_interrupted_leaves_nothing_half_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = made_before(tmp_path, CREATE)
    server = server_of(tmp_path, BOTH, cancel_grace_seconds=0)

    async def scenario(client: httpx.AsyncClient) -> None:
        await put(client, "tickets", old)
        worker = server.worker
        worker.adapt_gate.clear()
        asking = asyncio.create_task(server.engine.readapt(old))
        await until(lambda: bool(worker.adapted))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        worker.adapt_gate.set()
        await until(lambda: not server.engine._registry.in_flight)
        assert [row["id"] for row in (await client.get("/v1/adapters")).json()["data"]] == [old]
        with monkeypatch.context() as patch:  # it is stored, and then the disk is full
            patch.setattr(server.engine.names._store, "put", full)
            failed = await client.post(f"/v1/adapters/{old}/readapt")
            assert (failed.status_code, failed.json()["error"]["code"]) == (507, "store_failed")
        assert await history(client, "tickets") == [(old, None)]
        done = await readapt(client, old)
        assert (done["cache"], done["names"]) == ("hit", ["tickets"])
        assert [id for id, _ in await history(client, "tickets")] == [old, done["new_adapter_id"]]

    server.run(scenario)


def full(*_: Any, **__: Any) -> None:
    raise StorageFullError("the disk is full")
