"""When the client sends a request again, and how long it waits before."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from abmll_client import (
    AccessError,
    AsyncClient,
    BusyError,
    Client,
    ClientError,
    ConnectionFailedError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    StatusError,
    TookTooLongError,
    UnavailableError,
)
from abmll_client.errors import retry_after_seconds
from tests.client.conftest import OPTIONS, SUPPORT
from tests.client.transports import refusal, transport

OK = httpx.Response(200, json={"object": "list", "data": []})


@pytest.mark.parametrize(
    ("status", "code", "kind", "again"),
    [
        (400, "malformed_json", InvalidRequestError, False),
        (401, "http_401", AccessError, False),
        (404, "not_found", NotFoundError, False),
        (408, "slow", TookTooLongError, True),
        (413, "body_too_large", InvalidRequestError, False),
        (422, "invalid_request", InvalidRequestError, False),
        (422, "price_exceeds_deadline", InvalidRequestError, False),
        (429, "queue_full", BusyError, True),
        (500, "internal_error", ServerError, False),
        (502, "bad_gateway", UnavailableError, True),
        (503, "starting", UnavailableError, True),
        (503, "load_failed", UnavailableError, False),
        (504, "deadline_exceeded", TookTooLongError, True),
        (507, "store_failed", UnavailableError, True),
    ],
)
def test_only_what_may_succeed_later_is_sent_again(
    slept: list[float], status: int, code: str, kind: type[StatusError], again: bool
) -> None:
    sent = transport(refusal(status, code), OK)
    with Client(transport=sent) as client:
        if again:
            assert client.models() == []
        else:
            with pytest.raises(ClientError) as caught:
                client.models()
            assert type(caught.value) is kind
            assert (caught.value.code, caught.value.message, caught.value.request_id) == (code, "said", "r1")
    assert len(sent.requests) == 1 + again == 1 + len(slept)
    with Client(transport=transport(refusal(status, code)), max_retries=0) as client, pytest.raises(kind):
        client.models()


@pytest.mark.parametrize(
    "error", [httpx.ConnectError, httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError]
)
def test_broken_connections_are_tried_again_and_then_raised(
    slept: list[float], error: type[Exception]
) -> None:
    with Client(transport=transport(error("gone"), error("gone"), OK)) as client:
        assert client.models() == []
    sent = transport(error("gone"))
    with Client(transport=sent, max_retries=2) as client, pytest.raises(ConnectionFailedError, match="gone"):
        client.models()
    assert len(sent.requests) == 3
    assert len(slept) == 4


def test_what_is_sent_again_is_the_same(slept: list[float]) -> None:
    sent = transport(refusal(504), refusal(429), refusal(503))
    with Client(transport=sent, max_retries=2) as client, pytest.raises(UnavailableError):
        client.create_adapter(SUPPORT, options=OPTIONS, seed=5)
    bodies = {request.content for request in sent.requests}
    assert len(sent.requests) == 3
    assert json.loads(*bodies) == {
        "support": [{"input": text, "output": label} for text, label in SUPPORT],
        "options": OPTIONS,
        "seed": 5,
    }


def test_a_wait_is_as_long_as_the_server_asks_up_to_a_minute_and_half_as_long_again(
    slept: list[float],
) -> None:
    in_20_seconds = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    answers = [refusal(429, retry_after=value) for value in ("7", in_20_seconds, "86400", "0")]
    with Client(transport=transport(*answers, OK), max_retries=4) as client:
        client.models()
    for waited, asked in zip(slept, (7, 19, 60, 0), strict=True):
        assert asked <= waited <= 1.5 * asked + 3


def test_clients_that_are_refused_together_do_not_come_back_together(slept: list[float]) -> None:
    """Also where the wait is longer than the longest: the bound came after the spread before."""
    for asked in ("60", "600"):
        slept.clear()
        with Client(transport=transport(refusal(429, retry_after=asked)), max_retries=3) as client:
            for _ in range(100):
                with pytest.raises(BusyError):
                    client.models()
        assert 60 <= min(slept) < 63
        assert 87 < max(slept) <= 90
        assert len(set(slept)) == 300


def test_without_retry_after_waits_are_spread_over_windows_that_double(slept: list[float]) -> None:
    with Client(transport=transport(refusal(503)), max_retries=4) as client:
        for _ in range(200):
            with pytest.raises(UnavailableError):
                client.models()
    for i, window in enumerate((0.5, 1, 2, 4)):
        waits = slept[i::4]
        assert max(waits) <= window
        assert min(waits) < 0.1 * window  # full jitter starts at 0
        assert sum(waits) / len(waits) == pytest.approx(window / 2, rel=0.25)


def test_the_asynchronous_client_retries_alike(slept: list[float]) -> None:
    async def scenario() -> None:
        answers = (httpx.ConnectError("gone"), refusal(429, retry_after="3"), OK)
        async with AsyncClient(transport=transport(*answers)) as client:
            assert await client.models() == []
        async with AsyncClient(transport=transport(refusal(422))) as client:
            with pytest.raises(InvalidRequestError):
                await client.models()

    asyncio.run(scenario())
    assert len(slept) == 2
    assert 3 <= slept[1] <= 4.5


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1e999", "Mon, 99 Foo"])
def test_a_retry_after_that_says_nothing_is_none(text: str) -> None:
    assert retry_after_seconds(text) is None


def test_a_date_in_the_past_is_now() -> None:
    assert retry_after_seconds("Sun, 06 Nov 1994 08:49:37 GMT") == 0


def test_waiting_until_ready_polls_and_ends_at_once_where_there_is_no_hope(slept: list[float]) -> None:
    starting = [httpx.ConnectError("refused"), refusal(503, "starting", retry_after="5")]
    with Client(transport=transport(*starting, httpx.Response(200, json={"status": "ready"}))) as client:
        client.wait_until_ready(60)
    assert slept == [0.5, 0.5]
    with (
        Client(transport=transport(refusal(503, "load_failed"))) as client,
        pytest.raises(UnavailableError, match="load_failed"),
    ):
        client.wait_until_ready(60)
    assert len(slept) == 2


def test_an_error_of_somebody_in_between_is_read_as_far_as_it_goes() -> None:
    page = httpx.Response(403, text="<html>no</html>", headers={"x-request-id": "r9"})
    with Client(transport=transport(page)) as client, pytest.raises(AccessError) as caught:
        client.models()
    assert (caught.value.code, caught.value.message, caught.value.request_id) == (
        "http_403",
        "Forbidden",
        "r9",
    )


def test_a_quota_that_is_used_up_is_not_tried_again(slept: list[float]) -> None:
    sent = transport(refusal(429, "quota_exceeded"))
    with Client("http://host", transport=sent) as client, pytest.raises(AccessError):
        client.create_adapter([("text", "a")])
    assert len(sent.requests) == 1
    assert slept == []
