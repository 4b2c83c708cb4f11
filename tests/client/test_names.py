"""The client's methods of names, blocking and to await, against the whole application."""

from __future__ import annotations

import httpx
import pytest

from abmll_client import AsyncClient, InvalidRequestError, NotFoundError
from service.embedded import Embedded
from tests.client.conftest import OPTIONS, SUPPORT, Server


def test_a_name_is_put_followed_rolled_back_and_deleted(embedded: Embedded) -> None:
    with embedded.client() as client:
        first, second = (client.create_adapter(SUPPORT, options=OPTIONS, seed=n).id for n in range(2))
        assert client.put_name("tickets", first, note="the first").current.model == "tickets@1"
        assert client.put_name("tickets", second, if_version=1).current.version == 2
        with pytest.raises(InvalidRequestError) as refused:
            client.put_name("tickets", first, if_version=1)
        assert (refused.value.status, refused.value.code) == (409, "name_changed")
        answer = client.predict(["x"], model="tickets")
        assert (answer.adapter_id, answer.model) == (second, "tickets@2")
        assert client.rollback_name("tickets", 1).current.adapter_id == first
        found = client.name("tickets")
        assert [version.version for version in found.history] == [3, 2, 1]
        assert [version.version for version in client.name("tickets", before=3).history] == [2, 1]
        with pytest.raises(InvalidRequestError) as named:
            client.delete(first)
        assert named.value.code == "adapter_named"
        client.put_name("other", second)
        assert [name.name for name in client.names(page_size=1)] == ["other", "tickets"]
        assert client.delete_name("tickets").deleted
        with pytest.raises(NotFoundError):
            client.name("tickets")
        with pytest.raises(ValueError, match="empty"):
            client.name("")


def test_all_inputs_are_answered_by_one_version_though_the_name_moves(server: Server) -> None:
    """The name moves after the first of several requests."""
    sent: list[str] = []

    async def scenario(http: httpx.AsyncClient) -> None:
        class Moving(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                answer = await inner.handle_async_request(request)
                if request.url.path == "/v1/predict":
                    body = await answer.aread()
                    sent.append(httpx.Response(200, content=body).json()["model"])
                    await server.engine.names.put("tickets", ids[1], "fake-1b")
                return answer

        inner = httpx.ASGITransport(server.app)
        async with AsyncClient("http://server", transport=Moving()) as client:
            ids = [(await client.create_adapter(SUPPORT, options=OPTIONS, seed=n)).id for n in range(2)]
            await client.put_name("tickets", ids[0])
            most = (await client.limits()).max_inputs
            predictions = await client.predict_all(["x"] * (2 * most + 1), model="tickets")
            assert len(predictions) == 2 * most + 1
            assert sent == ["tickets@1"] * 3
            assert [name.current.version async for name in client.names()] == [4]
            assert (await client.rollback_name("tickets", 1)).current.version == 5
            assert (await client.name("tickets")).current.adapter_id == ids[0]
            assert (await client.delete_name("tickets")).name == "tickets"

    server.run(scenario)
