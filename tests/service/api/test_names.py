"""Names of adapters over HTTP: pointed, followed, pinned, rolled back, deleted, on every surface."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.schemas import NameWithHistory
from tests.service.conftest import Server

OPTIONS = ["yes", "no"]
SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
CREATE: dict[str, Any] = {"support": SUPPORT, "options": OPTIONS}


async def create(client: httpx.AsyncClient, seed: int = 0) -> str:
    return str((await client.post("/v1/adapters", json={**CREATE, "seed": seed})).json()["id"])


async def put(
    client: httpx.AsyncClient, adapter_id: str, name: str = "tickets", **more: Any
) -> httpx.Response:
    return await client.put(f"/v1/names/{name}", json={"adapter_id": adapter_id, **more})


async def predict(client: httpx.AsyncClient, model: str, **more: Any) -> httpx.Response:
    return await client.post("/v1/predict", json={"model": model, "inputs": ["x"], **more})


def error(response: httpx.Response, status: int, code: str, param: str | None) -> str:
    found = response.json()["error"]
    assert (response.status_code, found["code"], found["param"]) == (status, code, param), response.text
    return str(found["message"])


def test_a_request_follows_the_name_or_stays_at_a_version_and_hears_which_answered(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        first, second = await create(client), await create(client, seed=1)
        put_first = (await put(client, first, note="the first")).json()
        assert put_first["name"] == "tickets"
        assert put_first["current"].pop("created")
        assert put_first["current"] == {
            "model": "tickets@1", "version": 1, "adapter_id": first, "available": True, "note": "the first",
        }  # fmt: skip
        assert (await put(client, second)).json()["current"]["version"] == 2
        by_id = {id: await client.post("/v1/predict", json={"adapter_id": id, "inputs": ["x"]})
                 for id in (first, second)}  # fmt: skip
        for model, adapter_id, called in (
            ("tickets", second, "tickets@2"),
            ("tickets@2", second, "tickets@2"),
            ("tickets@1", first, "tickets@1"),
            (first, first, None),
        ):
            answer = (await predict(client, model)).json()
            assert (answer["adapter_id"], answer.get("model")) == (adapter_id, called)
            assert answer["predictions"] == by_id[adapter_id].json()["predictions"]

    server.run(scenario)


def test_names_are_there_after_a_restart(server: Server) -> None:
    async def first(client: httpx.AsyncClient) -> None:
        for seed in (0, 1):
            await put(client, await create(client, seed))

    server.run(first)

    async def second(client: httpx.AsyncClient) -> None:
        assert (await predict(client, "tickets")).json()["model"] == "tickets@2"
        assert (await predict(client, "tickets@1")).json()["model"] == "tickets@1"

    Server(server.settings.data_dir).run(second)


def test_a_rollback_is_a_new_version_and_the_history_has_all(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        ids = [await create(client, seed) for seed in range(3)]
        for id in ids:
            await put(client, id)
        back = await client.post("/v1/names/tickets/rollback", json={"version": 1, "note": "worse"})
        assert back.status_code == 200
        current = back.json()["current"]
        assert (current["version"], current["adapter_id"], current["rollback_of"]) == (4, ids[0], 1)
        found = NameWithHistory.model_validate((await client.get("/v1/names/tickets")).json())
        assert found.current == found.history[0]
        assert [(v.version, v.adapter_id) for v in found.history] == [
            (4, ids[0]), (3, ids[2]), (2, ids[1]), (1, ids[0]),
        ]  # fmt: skip
        page = (await client.get("/v1/names/tickets?limit=2&before=4")).json()
        assert ([v["version"] for v in page["history"]], page["has_more"]) == ([3, 2], True)
        assert page["current"]["version"] == 4
        missing = await client.post("/v1/names/tickets/rollback", json={"version": 9})
        message = error(missing, 404, "unknown_name", "version")
        assert message == "the name 'tickets' has no version 9; it is at 4"

    server.run(scenario)


def test_an_adapter_is_kept_while_a_name_points_to_it_and_older_versions_go_with_theirs(
    server: Server,
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        first, second = await create(client), await create(client, seed=1)
        await put(client, first)
        await put(client, first, "other")
        refused = await client.delete(f"/v1/adapters/{first}")
        message = error(refused, 409, "adapter_named", "adapter_id")
        assert "'other', 'tickets'" in message
        assert (await predict(client, first)).status_code == 200
        await put(client, second)
        await client.delete("/v1/names/other")
        assert (await client.delete(f"/v1/adapters/{first}")).status_code == 200
        history = (await client.get("/v1/names/tickets")).json()["history"]
        assert [(v["version"], v["available"]) for v in history] == [(2, True), (1, False)]
        message = error(await predict(client, "tickets@1"), 404, "unknown_model", "model")
        assert message == f"tickets@1 was adapter {first}, which was deleted"
        back = await client.post("/v1/names/tickets/rollback", json={"version": 1})
        error(back, 404, "unknown_adapter", "adapter_id")
        assert await create(client) == first  # the same examples give the same id
        assert (await predict(client, "tickets@1")).json()["adapter_id"] == first

    server.run(scenario)


def test_a_deleted_name_is_gone_and_its_numbers_do_not_come_again(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = await create(client)
        await put(client, id)
        await put(client, id)
        deleted = await client.delete("/v1/names/tickets")
        assert deleted.json() == {"name": "tickets", "object": "name", "deleted": True}
        for model in ("tickets", "tickets@1"):
            error(await predict(client, model), 404, "unknown_model", "model")
        for method in ("GET", "DELETE"):
            error(await client.request(method, "/v1/names/tickets"), 404, "unknown_name", "name")
        back = await client.post("/v1/names/tickets/rollback", json={"version": 1})
        error(back, 404, "unknown_name", "name")
        assert (await client.get("/v1/names")).json()["data"] == []
        assert (await put(client, id)).json()["current"]["model"] == "tickets@3"
        message = error(await predict(client, "tickets@2"), 404, "unknown_model", "model")
        assert message == "the name 'tickets' has no version 2; it is at 3"

    server.run(scenario)


def test_names_are_listed_page_by_page(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = await create(client)
        for name in ("c", "a", "b"):
            await put(client, id, name)
        first = (await client.get("/v1/names?limit=2")).json()
        assert ([row["name"] for row in first["data"]], first["has_more"]) == (["a", "b"], True)
        rest = (await client.get("/v1/names?limit=2&after=b")).json()
        assert ([row["name"] for row in rest["data"]], rest["has_more"]) == (["c"], False)
        error(await client.get("/v1/names?limit=0"), 422, "invalid_request", "limit")

    server.run(scenario)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("A", "is no name: it has 1 to 64 of"),
        ("a" * 65, "is no name"),
        ("1a", "is no name"),
        ("adp_0123456789abcdef", "is no name"),
        ("a@1", "is no name"),
        ("%C3%A4", "'ä' is no name"),
        ("fake-1b", "'fake-1b' is the base model"),
    ],
)
def test_a_bad_name_is_refused_and_nothing_is_written(server: Server, name: str, message: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await put(client, await create(client), name)
        assert message in error(refused, 422, "invalid_name", "name")
        assert list(server.settings.names_dir.iterdir()) == []
        assert (await client.get(f"/v1/names/{name}")).status_code == 404

    server.run(scenario)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"adapter_id": "adp_00000000"}, 404, "unknown_adapter", "adapter_id"),
        ({"adapter_id": "../x"}, 404, "unknown_adapter", "adapter_id"),
        ({}, 422, "invalid_request", "adapter_id"),
        ({"adapter_id": "adp_00000000", "if_version": -1}, 422, "invalid_request", "if_version"),
        ({"adapter_id": "adp_00000000", "note": "x" * 501}, 422, "invalid_request", "note"),
        ({"adapter_id": "adp_00000000", "version": 1}, 422, "invalid_request", "version"),
    ],
)
def test_a_bad_body_is_refused_and_nothing_is_written(
    server: Server, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        error(await client.put("/v1/names/tickets", json=body), status, code, param)
        assert list(server.settings.names_dir.iterdir()) == []

    server.run(scenario)


def test_a_prediction_names_its_adapter_once(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = await create(client)
        await put(client, id)
        worked = len(server.worker.predicted)
        for more in ({"adapter_id": id}, CREATE):
            message = error(await predict(client, "tickets", **more), 422, "invalid_request", "model")
            assert "'tickets@1' names an adapter: leave adapter_id and support out" in message
        base = await predict(client, "fake-1b")
        assert "is the base model" in error(base, 422, "invalid_request", "model")
        adapt = await predict(client, "tickets", adapt={"steps": 1})
        assert "already fitted" in error(adapt, 422, "invalid_request", None)
        for model in ("nothing", "tickets@2", "tickets@0", "tickets@", "@1", "tickets@01", "x" * 200):
            error(await predict(client, model), 404, "unknown_model", "model")
        assert len(server.worker.predicted) == worked
        assert (await predict(client, "fake-1b", adapter_id=id)).json().get("model") is None

    server.run(scenario)


def test_calibrated_gates_belong_to_a_version_because_they_belong_to_its_adapter(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        first, second = await create(client), await create(client, seed=1)
        await put(client, first)
        examples = [{"input": f"known {i}", "output": OPTIONS[i % 2]} for i in range(6)]
        await client.post(f"/v1/adapters/{first}/calibrate", json={"examples": examples})
        gate = {"gate": {"target_coverage": 0.5}}
        assert (await predict(client, "tickets", **gate)).json()["gate"]["n"] == 6
        await put(client, second)
        error(await predict(client, "tickets", **gate), 422, "calibration_missing", "model")
        assert (await predict(client, "tickets@1", **gate)).json()["gate"]["n"] == 6

    server.run(scenario)


def test_every_surface_takes_names_and_echoes_the_version(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = await create(client)
        await put(client, id)
        await put(client, id)
        chat = {"model": "tickets", "messages": [{"role": "user", "content": "x"}]}
        assert (await client.post("/v1/chat/completions", json=chat)).json()["model"] == "tickets@2"
        streamed = await client.post("/v1/chat/completions", json={**chat, "stream": True})
        assert '"model":"tickets@2"' in streamed.text
        completion = await client.post("/v1/completions", json={"model": "tickets@1", "prompt": "x"})
        assert completion.json()["model"] == "tickets@1"
        classified = await client.post("/v1/classify", json={"model": "tickets", "inputs": ["x"]})
        assert classified.json()["abmll"]["model"] == "tickets@2"
        assert classified.json()["abmll"]["adapter_id"] == id
        native = await predict(client, "tickets", stream=True)
        assert '"model":"tickets@2"' in native.text
        text = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
        for path, version in (
            ("tickets", "2"), ("tickets/versions/1", "1"), ("tickets@1", "1"), ("tickets@1/versions/1", "1"),
        ):  # fmt: skip
            inferred = (await client.post(f"/v2/models/{path}/infer", json=text)).json()
            assert (inferred["model_name"], inferred["model_version"]) == ("tickets", version)
            assert inferred["parameters"]["adapter_id"] == id
        assert (await client.get("/v2/models/tickets")).json()["versions"] == ["2"]
        for path in ("tickets/versions/3", "tickets@1/versions/2", f"{id}/versions/2", "nothing"):
            assert (await client.get(f"/v2/models/{path}/ready")).status_code == 404, path

    server.run(scenario)


def test_names_are_among_openais_models(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        ids = sorted([await create(client, seed) for seed in range(2)])
        for name in ("b", "a", "c"):
            await put(client, ids[0], name)
        whole = (await client.get("/v1/models")).json()
        parents = {row["id"]: row["parent"] for row in whole["data"]}
        base = dict.fromkeys(ids, "fake-1b")
        assert parents == {"fake-1b": None, **base, "a": ids[0], "b": ids[0], "c": ids[0]}
        assert whole["has_more"] is False
        pages: list[str] = []
        after: dict[str, str] = {}
        for _ in range(4):
            page = (await client.get("/v1/models", params={"limit": 2, **after})).json()
            pages += [row["id"] for row in page["data"]]
            after = {"after": page["last_id"]}
            if not page["has_more"]:
                break
        assert pages == ["fake-1b", *ids, "a", "b", "c"]
        for model in ("a", "a@1"):
            card = (await client.get(f"/v1/models/{model}")).json()
            assert (card["id"], card["parent"]) == (model, ids[0])
        assert (await client.get("/v1/models/a@2")).status_code == 404

    server.run(scenario)
