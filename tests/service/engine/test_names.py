"""Changes of names that come at the same time: none is lost, and no name points to nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.errors import StoreFailedError, UnknownModelError
from tests.service.conftest import Server, until

SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]


async def create(client: httpx.AsyncClient, seed: int = 0) -> str:
    body = {"support": SUPPORT, "options": ["yes", "no"], "seed": seed}
    return str((await client.post("/v1/adapters", json=body)).json()["id"])


async def put(client: httpx.AsyncClient, id: str, **more: Any) -> httpx.Response:
    return await client.put("/v1/names/tickets", json={"adapter_id": id, **more})


def stopped(
    server: Server, monkeypatch: pytest.MonkeyPatch, method: str
) -> tuple[list[str], threading.Event]:
    """Have a method of the names' store wait for the event; return who waits, and the event."""
    store, waiting, go = server.engine.names._store, list[str](), threading.Event()
    real: Callable[..., Any] = getattr(store, method)

    def wait(*args: Any, **more: Any) -> Any:
        waiting.append(method)
        assert go.wait(20)
        return real(*args, **more)

    monkeypatch.setattr(store, method, wait)
    return waiting, go


async def versions(client: httpx.AsyncClient) -> list[tuple[int, str]]:
    rows = (await client.get("/v1/names/tickets")).json()["history"]
    return [(row["version"], row["adapter_id"]) for row in reversed(rows)]


def test_of_two_puts_both_are_versions(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        ids = [await create(client, seed) for seed in range(2)]
        answers = await asyncio.gather(*(put(client, ids[n % 2]) for n in range(10)))
        numbers = [answer.json()["current"]["version"] for answer in answers]
        assert sorted(numbers) == list(range(1, 11))
        acknowledged = sorted((number, ids[n % 2]) for n, number in enumerate(numbers))
        assert await versions(client) == acknowledged

    server.run(scenario)


def test_of_two_puts_that_expect_one_version_one_wins(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        ids = [await create(client, seed) for seed in range(2)]
        for expected in (0, 1):
            answers = await asyncio.gather(*(put(client, id, if_version=expected) for id in ids))
            assert sorted(answer.status_code for answer in answers) == [200, 409]
            (refused,) = [answer.json()["error"] for answer in answers if answer.status_code == 409]
            assert (refused["code"], refused["param"]) == ("name_changed", "if_version")
            assert refused["message"] == f"the name 'tickets' is at version {expected + 1}, not at {expected}"
        assert len(await versions(client)) == 2
        await client.delete("/v1/names/tickets")
        gone = await put(client, ids[0], if_version=2)
        assert gone.json()["error"]["message"] == "the name 'tickets' does not exist, not at 2"

    server.run(scenario)


def test_an_adapter_is_not_deleted_while_a_name_is_pointed_to_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = await create(client)
        waiting, go = stopped(server, monkeypatch, "put")
        putting = asyncio.create_task(put(client, id))
        await until(lambda: waiting == ["put"])
        deleting = asyncio.create_task(client.delete(f"/v1/adapters/{id}"))
        await asyncio.sleep(0.05)
        go.set()
        assert (await putting).status_code == 200
        assert (await deleting).json()["error"]["code"] == "adapter_named"
        assert await server.engine.resolve_model("tickets") == (id, "tickets@1")

    server.run(scenario)


def test_a_name_is_not_pointed_to_an_adapter_that_is_being_deleted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = await create(client)
        delete, waiting, go = server.store.delete, list[str](), threading.Event()

        def wait(id: str) -> bool:
            waiting.append(id)
            assert go.wait(20)
            return delete(id)

        monkeypatch.setattr(server.store, "delete", wait)
        deleting = asyncio.create_task(client.delete(f"/v1/adapters/{id}"))
        await until(lambda: waiting == [id])
        putting = asyncio.create_task(put(client, id))
        await asyncio.sleep(0.05)
        go.set()
        assert (await deleting).status_code == 200
        assert (await putting).json()["error"]["code"] == "unknown_adapter"
        assert (await client.get("/v1/names/tickets")).status_code == 404

    server.run(scenario)


def test_a_rollback_to_a_name_that_is_being_deleted_finds_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await put(client, await create(client))
        waiting, go = stopped(server, monkeypatch, "delete")
        deleting = asyncio.create_task(client.delete("/v1/names/tickets"))
        await until(lambda: waiting == ["delete"])
        back = asyncio.create_task(client.post("/v1/names/tickets/rollback", json={"version": 1}))
        await asyncio.sleep(0.05)
        go.set()
        assert (await deleting).status_code == 200
        assert (await back).json()["error"]["code"] == "unknown_name"

    server.run(scenario)


def test_a_caller_who_leaves_frees_the_locks_only_when_the_write_is_done(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = await create(client)
        waiting, go = stopped(server, monkeypatch, "put")
        putting = asyncio.create_task(server.engine.names.put("tickets", id, "fake-1b"))
        await until(lambda: waiting == ["put"])
        putting.cancel()
        deleting = asyncio.create_task(client.delete(f"/v1/adapters/{id}"))
        await asyncio.sleep(0.05)
        assert not deleting.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert (await deleting).json()["error"]["code"] == "adapter_named"
        assert await versions(client) == [(1, id)]

    server.run(scenario)


def test_what_cannot_be_written_is_not_acknowledged(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = await create(client)
        await put(client, id)

        def refuse(*_: Any) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(server.engine.names._store.journals, "append", refuse)
            with pytest.raises(StoreFailedError, match="nothing is acknowledged"):
                await server.engine.names.put("tickets", id, "fake-1b")
            with pytest.raises(StoreFailedError):
                await server.engine.names.delete("tickets")
        assert await versions(client) == [(1, id)]
        assert (await put(client, id)).json()["current"]["version"] == 2

    server.run(scenario)


def test_a_model_is_the_base_an_adapter_a_name_or_a_version(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        id = await create(client)
        await put(client, id)
        resolve = server.engine.resolve_model
        assert await resolve("fake-1b") == (None, "fake-1b")
        assert await resolve(id) == (id, id)
        assert await resolve("tickets") == await resolve("tickets@1") == (id, "tickets@1")
        with pytest.raises(UnknownModelError, match="there is no adapter 'adp_00000000'"):
            await resolve("adp_00000000")
        with pytest.raises(UnknownModelError, match="a model is 'fake-1b', the id of an adapter, or a name"):
            await resolve("nothing")

    server.run(scenario)
