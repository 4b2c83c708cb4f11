"""Streams of events from servers that are played: borders, repeats, forms and ends of a body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from abmll_client import (
    AccessError,
    AsyncClient,
    BusyError,
    Client,
    ClientError,
    ConnectionFailedError,
    StatusError,
    TookTooLongError,
    UnavailableError,
    UnreadableAnswerError,
)
from tests.client.streams import KINDS, Kind, Pieces, Played, answer_of, played, read

both = pytest.mark.parametrize("kind", KINDS)


def prediction(index: int, samples: int, **more: Any) -> dict[str, Any]:
    uncertainty = dict.fromkeys(
        ["total_entropy", "expected_entropy", "mutual_information", "mc_standard_error"], 0.0
    )
    return {
        "index": index, "answer": "ja\u2028né😀", "confidence": 0.5, "confidence_kind": "predictive",
        "margin": 0.1, "decision": "answer", "samples": samples, "uncertainty": uncertainty,
        "distribution": [{"option": "ja\u2028né😀", "probability": 0.5, "std": 0.0}], **more,
    }  # fmt: skip


def event(name: str, data: Any, escaped: bool = False) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=escaped)}\n\n".encode()


TIMES = dict.fromkeys(["queue_seconds", "adapt_seconds", "predict_seconds", "total_seconds"], 0)
USAGE = dict.fromkeys(["support_tokens", "prompt_tokens", "completion_tokens"], 1)
END = {
    "adapter_id": "adp_0", "usage": USAGE, "seed": 0, "warnings": [], "cache": "hit",
    "timings": TIMES, "request_id": "r1",
}  # fmt: skip
STEP = event("step", {"step": 1, "steps": 1, "loss": 0.5})
ADAPTER = event("adapter", {"adapter_id": "adp_0", "cache": "miss", "warnings": []})
FIRST, SECOND = event("prediction", prediction(0, 8)), event("prediction", prediction(1, 16))
DONE = event("done", END)
WHOLE = [STEP, b": keep-alive\n\n", ADAPTER, event("refinement", prediction(1, 8)), SECOND, FIRST, DONE]
NAMES = ["step", "adapter", "refinement", "prediction", "prediction", "done"]


def failure(code: str) -> bytes:
    return event("error", {"error": {"code": code, "message": "said", "param": None, "request_id": "r1"}})


def refusal(status: int, code: str) -> httpx.Response:
    error = {"code": code, "message": "said", "param": None, "request_id": "r1"}
    return httpx.Response(status, json={"error": error}, headers={"retry-after": "0"})


def stream(kind: Kind, server: Played | httpx.Response, most: int = 10**6, **own: Any) -> list[Any]:
    """Return the events of a stream for two inputs, from a server or from one answer."""
    transport = server if isinstance(server, Played) else Played(server)
    given = {"transport": transport, "max_retries": 0, **own}
    return read(kind, "http://played", "stream", ["a", "b"], adapter_id="adp_0", client=given, most=most)


# ---- what is read --------------------------------------------------------------------------------


@both
def test_borders_of_pieces_change_nothing(kind: Kind) -> None:
    """Each border once, also in a character of several bytes, and a piece for each byte."""
    body = b"".join(WHOLE)
    expected = stream(kind, played(body))
    assert [found.name for found in expected] == NAMES
    assert stream(kind, played(*(bytes([byte]) for byte in body))) == expected
    for border in range(0, len(body), 7):
        assert stream(kind, played(body[:border], body[border:])) == expected


@both
def test_the_last_event_has_the_whole_answer_in_the_order_of_the_inputs(kind: Kind) -> None:
    again = event("prediction", prediction(0, 8, prediction_id="p1"))
    *_, done = stream(kind, played(*WHOLE[:-1], again, DONE))
    assert [(p.index, p.samples) for p in done.data.predictions] == [(0, 8), (1, 16)]
    assert done.data.predictions[0].prediction_id == "p1"  # the later counts
    assert done.data.predictions[0].answer == "ja\u2028né😀"
    assert done.data.request_id == "r1"


@both
def test_events_and_fields_of_a_newer_server_are_left_out(kind: Kind) -> None:
    newer = [event("not_yet", {"x": 1}), event("step", {"step": 1, "steps": 1, "loss": 0.5, "not_yet": {}})]
    assert stream(kind, played(*newer, *WHOLE[1:])) == stream(kind, played(*WHOLE))


@both
def test_what_is_sent_asks_for_a_stream_and_names_its_adapter(kind: Kind) -> None:
    server = Played(played(*WHOLE))
    stream(kind, server)
    (request,) = server.requests
    assert json.loads(request.content) == {"inputs": ["a", "b"], "stream": True, "adapter_id": "adp_0"}
    assert request.headers["x-abmll-adapter"] == "adp_0"


@both
def test_the_connection_is_closed_early_and_at_the_end(kind: Kind) -> None:
    for most in (1, 3, len(NAMES), len(NAMES) + 1):
        body = Pieces(WHOLE)
        assert len(stream(kind, answer_of(body), most=most)) == min(most, len(NAMES))
        assert body.closed


# ---- what goes wrong -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "broken", [None, httpx.ReadError("gone"), httpx.RemoteProtocolError("cut"), httpx.ReadTimeout("late")]
)
def test_a_body_that_ends_early_is_an_error_and_is_not_asked_for_again(
    kind: Kind, broken: Exception | None
) -> None:
    for count in range(1, len(WHOLE)):
        server = Played(played(*WHOLE[:count], DONE[:-1], broken=broken), played(*WHOLE))
        with pytest.raises(ConnectionFailedError, match=r"^POST /v1/predict: "):
            stream(kind, server, max_retries=3)
        assert len(server.requests) == 1


@both
def test_what_breaks_behind_the_last_event_does_not_matter(kind: Kind) -> None:
    assert [found.name for found in stream(kind, played(*WHOLE, broken=httpx.ReadError("gone")))] == NAMES
    assert [found.name for found in stream(kind, played(*WHOLE, failure("draining")))] == NAMES


@both
def test_until_the_first_event_a_request_is_sent_again(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll_client.retries._backoff", lambda _: 0.0)
    failed = [
        httpx.ConnectError("refused"),
        refusal(429, "queue_full"),
        refusal(503, "starting"),
        played(b": keep-alive\n\n"),
        played(b": keep-alive\n\n", broken=httpx.ReadError("gone")),
        played(b"", failure("draining")),
    ]
    server = Played(*failed, played(*WHOLE))
    assert [found.name for found in stream(kind, server, max_retries=6)] == NAMES
    assert len(server.requests) == 7
    server = Played(played(failure("invalid_options")), played(*WHOLE))
    with pytest.raises(StatusError, match="invalid_options"):
        stream(kind, server, max_retries=6)
    assert len(server.requests) == 1


@both
@pytest.mark.parametrize(
    ("code", "error", "status", "retryable"),
    [
        ("deadline_exceeded", TookTooLongError, 504, True),
        ("draining", UnavailableError, 503, True),
        ("load_failed", UnavailableError, 503, False),
        ("queue_full", BusyError, 429, True),
        ("invalid_api_key", AccessError, 401, False),
        ("quota_exceeded", AccessError, 429, False),
        ("of_a_newer_server", StatusError, 500, False),
    ],
)
def test_an_event_of_an_error_raises_what_the_answer_would(
    kind: Kind, code: str, error: type[StatusError], status: int, retryable: bool
) -> None:
    with pytest.raises(error) as caught:
        stream(kind, played(STEP, failure(code), *WHOLE))
    found = caught.value
    assert (found.code, found.status, found.retryable) == (code, status, retryable)
    assert (found.message, found.request_id) == ("said", "r1")


@both
@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([event("step", {"step": 1})], "POST /v1/predict, event step: steps is not as a AdaptStep has it"),
        ([b"event: step\ndata: {\n\n"], "event step: the body is not as a AdaptStep has it"),
        ([FIRST, DONE], "event done: it came before every input had its event `prediction`"),
        ([FIRST, SECOND, event("prediction", prediction(2, 8)), DONE], "event done: it came before"),
        ([FIRST, SECOND, event("done", [])], "event done: the body is not as a PredictResponse has it"),
        ([FIRST, SECOND, b"event: done\ndata: {\n\n"], "event done: the body is not as a PredictResponse"),
        ([event("error", {"x": 1})], "event error: error is not as a ErrorResponse has it"),
    ],
)
def test_an_event_in_another_form_says_where(kind: Kind, pieces: list[bytes], says: str) -> None:
    with pytest.raises(UnreadableAnswerError, match=says):
        stream(kind, played(*pieces))


@both
def test_an_answer_that_is_no_stream_is_not_read_as_one(kind: Kind) -> None:
    with pytest.raises(UnreadableAnswerError, match="POST /v1/predict: the answer is no stream of events"):
        stream(kind, httpx.Response(200, json=END))


# ---- the iterators -------------------------------------------------------------------------------


def test_a_closed_stream_is_no_empty_one() -> None:
    with Client(transport=Played(played(*WHOLE), played(*WHOLE))) as client:
        with client.stream(["a", "b"]) as events:
            next(events)
        with pytest.raises(ClientError, match="inside its `with` statement"):
            next(events)
        whole = client.stream(["a", "b"])  # read to its end, it needs no statement
        assert len(list(whole)) == len(NAMES)
        assert list(whole) == []


def test_a_closed_stream_is_no_empty_one_to_await() -> None:
    async def scenario() -> None:
        async with AsyncClient(transport=Played(played(*WHOLE), played(*WHOLE))) as client:
            async with client.stream(["a", "b"]) as events:
                await anext(events)
            with pytest.raises(ClientError, match="inside its `with` statement"):
                await anext(events)
            whole = client.stream(["a", "b"])
            assert len([found async for found in whole]) == len(NAMES)
            assert [found async for found in whole] == []

    asyncio.run(scenario())


def test_a_stream_has_one_of_the_clients_places_until_it_ends() -> None:
    pinned = {"id": "adp_0", "object": "adapter", "pinned": True}

    async def scenario() -> None:
        answers = [httpx.Response(200, json=pinned) for _ in range(3)]
        transport = Played(played(*WHOLE), *answers[:2], played(STEP), answers[2])
        async with AsyncClient(transport=transport, max_concurrency=1, max_retries=0) as client:
            async with client.stream(["a", "b"]) as events:
                await anext(events)
                waiting = asyncio.create_task(client.pin("adp_0"))
                await asyncio.sleep(0.05)
                assert not waiting.done()
                assert len([found async for found in events]) == len(NAMES) - 1
                assert (await waiting).pinned
            assert (await client.pin("adp_0")).pinned
            with pytest.raises(ConnectionFailedError):  # a stream that fails gives its place back too
                _ = [found async for found in client.stream(["a", "b"])]
            assert (await client.pin("adp_0")).pinned

    asyncio.run(scenario())


def test_a_cancelled_reader_closes_the_connection_and_frees_the_place() -> None:
    class Silent(Pieces):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield STEP
            await asyncio.Event().wait()

    async def scenario() -> None:
        body = Silent([])
        silent = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
        async with AsyncClient(transport=Played(silent, played(*WHOLE)), max_concurrency=1) as client:

            async def reads() -> None:
                async with client.stream(["a", "b"]) as events:
                    _ = [found async for found in events]

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reads(), 0.05)
            assert body.closed
            assert len([found async for found in client.stream(["a", "b"])]) == len(NAMES)

    asyncio.run(scenario())
