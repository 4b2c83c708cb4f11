"""Files and batches, used by OpenAI's own client against the whole application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest

from service.bulk import running
from tests.service.bulk.rows import (
    TASK,
    adapter,
    begin,
    ended,
    lines,
    play,
    predict_rows,
    read,
    row,
    upload,
)
from tests.service.conftest import Server, until

QUESTIONS = [
    {"type": "predicate", "name": "urgent", "instructions": "It is urgent."},
    {
        "type": "choice",
        "name": "team",
        "instructions": "Which team?",
        "choices": [{"value": "billing"}, {"value": "parcels"}],
    },
]


def same(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without what differs between two equal requests."""
    apart = {"timings", "request_id", "cache", "created", "id"}
    return {k: same(v) if isinstance(v, dict) else v for k, v in answer.items() if k not in apart}


def test_every_row_is_answered_as_the_path_answers_it_and_in_order(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        adapter_id = await adapter(http)
        rows = predict_rows(150, adapter_id, samples=4)
        batch = await begin(client, lines(rows), metadata={"job": "1"})
        assert (batch.status, batch.metadata) == ("validating", {"job": "1"})
        batch = await ended(client, batch)
        assert (batch.status, batch.error_file_id, batch.errors) == ("completed", None, None)
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 150, "completed": 150, "failed": 0}
        assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.completed_at or 0)
        answers = await read(client, batch.output_file_id)
        assert [a["custom_id"] for a in answers] == [r["custom_id"] for r in rows]
        assert len({a["id"] for a in answers}) == 150
        for n in (0, 63, 64, 149):
            alone = await http.post("/v1/predict", json=rows[n]["body"])
            assert answers[n]["response"]["status_code"] == 200
            assert answers[n]["response"]["request_id"] == answers[n]["response"]["body"]["request_id"]
            assert same(answers[n]["response"]["body"]) == same(alone.json())

    play(server, scenario)
    assert len(server.worker.predicted) < 20, "rows were not grouped"


def decision(n: int) -> dict[str, Any]:
    return {"model": "fake-1b", "input": f"text {n % 7}", "questions": QUESTIONS[: 1 + n // 10]}


def chat(n: int) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"text {n}"}]
    return {"model": "fake-1b", "messages": asked, "abmll": {**TASK, "samples": 2 + n // 10}}


def several_inputs(n: int) -> dict[str, Any]:
    inputs = [f"text {n}", {"input": "other", "options": ["a", "b"]} if n == 3 else "same"]
    return {**TASK, "inputs": inputs, "gate": {"min_confidence": 0.1 * (n // 10)}}


@pytest.mark.parametrize(
    ("url", "body"),
    [("/v1/decisions", decision), ("/v1/chat/completions", chat), ("/v1/predict", several_inputs)],
)
def test_each_path_answers_rows_as_it_answers_requests(
    server: Server, url: str, body: Callable[[int], dict[str, Any]]
) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        batch = await begin(client, lines([row(str(n), body(n), url) for n in range(20)]), url)
        batch = await ended(client, batch)
        answers = await read(client, batch.output_file_id)
        assert [a["custom_id"] for a in answers] == [str(n) for n in range(20)], batch
        for n, answer in enumerate(answers):
            alone = await http.post(url, json=body(n))
            assert alone.status_code == 200, alone.text
            assert same(answer["response"]["body"]) == same(alone.json())

    play(server, scenario)


def test_a_refused_row_goes_to_the_file_of_errors_in_the_words_of_its_path(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        rows = predict_rows(9, await adapter(http))
        rows[2]["body"]["inputs"] = ["x" * 5000]  # refused by the engine, with the others of its group
        rows[4]["body"]["sampels"] = 3  # refused before
        rows[6]["body"]["adapter_id"] = "adp_00"
        rows[8]["body"]["stream"] = True
        batch = await ended(client, await begin(client, lines(rows)))
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 9, "completed": 5, "failed": 4}
        done, refused = await read(client, batch.output_file_id), await read(client, batch.error_file_id)
        assert [a["custom_id"] for a in done] == [f"row-{n}" for n in (0, 1, 3, 5, 7)]
        assert [a["custom_id"] for a in refused] == [f"row-{n}" for n in (2, 4, 6, 8)]
        for answer, n in zip(refused[:3], (2, 4, 6), strict=True):
            alone = await http.post("/v1/predict", json=rows[n]["body"])
            response = answer["response"]
            assert response["status_code"] == alone.status_code
            assert answer["error"] is None
            assert response["body"]["error"].pop("request_id") == response["request_id"]
            theirs = alone.json()["error"]
            assert theirs.pop("request_id")
            assert response["body"]["error"] == theirs
        assert "stream" in refused[3]["response"]["body"]["error"]["message"]

    play(server, scenario)


BAD = [
    (b'{"custom_id": "b", ', "invalid_json_line"),
    (b"[1]", "invalid_json_line"),
    (b'{"custom_id": "b", "method": "POST", "url": "/v1/predict", "body": {"a": NaN}}', "invalid_json_line"),
    (b'{"custom_id": "b", "method": "POST", "url": "/v1/predict"}', "missing_required_parameter"),
    (b'{"custom_id": "b", "method": "GET", "url": "/v1/predict", "body": {}}', "invalid_method"),
    (b'{"custom_id": "b", "method": "POST", "url": "/v1/decide", "body": {}}', "mismatched_endpoint"),
    (b'{"custom_id": "b", "method": "POST", "url": "/v1/predict", "body": []}', "invalid_value"),
    (b'{"custom_id": 7, "method": "POST", "url": "/v1/predict", "body": {}}', "invalid_value"),
    (b'{"custom_id": "row-0", "method": "POST", "url": "/v1/predict", "body": {}}', "duplicate_custom_id"),
    (b'{"custom_id": "b", "method": "POST", "url": "/v1/predict", "body": {}, "x": 1}', "unknown_parameter"),
    (b'{"custom_id": "b", "method": "POST", "url": "/v1/predict", "body": {"x": "%s"}}' % (b"y" * 2_000_000),
     "line_too_long"),
    (b'{"custom_id": "\xff"}', "invalid_json_line"),
]  # fmt: skip


def test_a_file_with_bad_lines_fails_before_any_row_with_the_numbers_of_the_lines(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        del http
        good = lines(predict_rows(2, "adp_00"))
        content = b"\xef\xbb\xbf" + good + b"\r\n" + b"\n".join(line for line, _ in BAD)
        batch = await ended(client, await begin(client, content))
        assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
        assert batch.errors is not None
        found = [(error.line, error.code) for error in batch.errors.data or []]
        assert found == [(number, code) for number, (_, code) in enumerate(BAD, start=4)]
        assert [e.message for e in batch.errors.data or [] if e.code == "duplicate_custom_id"] == [
            "custom_id 'row-0' is that of line 1 already"
        ]

    play(server, scenario)
    assert server.worker.predicted == []


def test_an_empty_file_fails(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        del http
        batch = await ended(client, await begin(client, b"\n \r\n"))
        assert batch.status == "failed"
        assert batch.errors is not None
        assert [e.code for e in batch.errors.data or []] == ["empty_file"]

    play(server, scenario)


def test_a_cancelled_batch_keeps_what_it_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "COMMIT_SECONDS", 0.0)  # else it may have ended with its first answers

    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        adapter_id = await adapter(http)
        batch = await begin(client, lines(predict_rows(2000, adapter_id, samples=0)))
        while not (batch.request_counts and batch.request_counts.completed):
            await asyncio.sleep(0.01)
            batch = await client.batches.retrieve(batch.id)
        assert batch.output_file_id is None
        extras: Any = batch.model_extra["abmll"]  # type: ignore[index]
        partial = await read(client, extras["output_file_id"])
        assert [a["custom_id"] for a in partial] == [f"row-{n}" for n in range(len(partial))] != []
        with pytest.raises(openai.ConflictError, match="cancel it first"):
            await client.files.delete(batch.input_file_id)
        batch = await client.batches.cancel(batch.id)
        assert batch.status == "cancelling"
        batch = await ended(client, batch)
        assert batch.status == "cancelled"
        assert batch.request_counts is not None
        answers = await read(client, batch.output_file_id)
        assert len(partial) <= len(answers) == batch.request_counts.completed < 2000
        assert [a["custom_id"] for a in answers] == [f"row-{n}" for n in range(len(answers))]
        with pytest.raises(openai.ConflictError, match="it is cancelled"):
            await client.batches.cancel(batch.id)
        assert (await client.files.delete(batch.input_file_id)).deleted

    play(server, scenario)


def test_an_expired_batch_says_so_of_every_row_that_is_left(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        rows = predict_rows(300, await adapter(http))
        bulk = server.app.state.bulk
        create = bulk.create

        async def soon(**given: Any) -> Any:
            return await create(**{**given, "window_seconds": 1.0})

        monkeypatch.setattr(bulk, "create", soon)
        server.worker.predict_gate.clear()
        batch = await begin(client, lines(rows))
        await until(lambda: bool(server.worker.predicted))
        await asyncio.sleep(1.1)
        server.worker.predict_gate.set()
        batch = await ended(client, batch)
        assert batch.status == "expired"
        done, left = await read(client, batch.output_file_id), await read(client, batch.error_file_id)
        assert [a["custom_id"] for a in [*done, *left]] == [f"row-{n}" for n in range(300)]
        assert {a["error"]["code"] for a in left} == {"batch_expired"}

    play(server, scenario)


def test_two_batches_run_at_once_and_a_request_beside_them_comes_first(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        adapter_id = await adapter(http)
        server.worker.predict_gate.clear()
        first = await begin(client, lines(predict_rows(300, adapter_id)))
        second = await begin(client, lines(predict_rows(300, adapter_id)))
        await until(lambda: bool(server.worker.predicted))  # one group is in the worker, others wait
        await asyncio.sleep(0.1)
        body = {"adapter_id": adapter_id, "inputs": ["now"]}
        request = asyncio.create_task(http.post("/v1/predict", json=body))
        await asyncio.sleep(0.1)
        server.worker.predict_gate.set()
        assert (await request).status_code == 200
        for batch in (await ended(client, first), await ended(client, second)):
            assert len(await read(client, batch.output_file_id)) == 300
        order = [job.prompts[0].text for job in server.worker.predicted]
        assert order.index("now") == 1, order

    play(server, scenario)


def test_batches_take_no_place_of_requests(tmp_path: Any) -> None:
    server = Server(tmp_path, queue_limit=1)

    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        adapter_id = await adapter(http)
        server.worker.predict_gate.clear()
        batch = await begin(client, lines(predict_rows(100, adapter_id)))
        await until(lambda: bool(server.worker.predicted))
        body = {"adapter_id": adapter_id, "inputs": ["now"]}
        request = asyncio.create_task(http.post("/v1/predict", json=body))
        await asyncio.sleep(0.1)
        server.worker.predict_gate.set()
        assert (await request).status_code == 200
        assert (await ended(client, batch)).status == "completed"

    play(server, scenario)


Refused = Callable[[openai.AsyncOpenAI, str], Awaitable[Any]]


@pytest.mark.parametrize(
    ("refused", "kind", "message"),
    [
        (lambda c, f: c.batches.create(input_file_id=f, endpoint="/v1/decide", completion_window="24h"),
         openai.BadRequestError, "but to /v1/chat/completions, /v1/decisions, /v1/predict"),
        (lambda c, f: c.batches.create(input_file_id="file-0", endpoint="/v1/predict", completion_window="24h"),
         openai.NotFoundError, "there is no file 'file-0'"),
        (lambda c, f: c.batches.create(input_file_id=f, endpoint="/v1/predict", completion_window="1000h"),
         openai.BadRequestError, "720h, such as 24h"),
        (lambda c, f: c.batches.create(input_file_id=f, endpoint="/v1/predict", completion_window="721h"),
         openai.BadRequestError, "720h, such as 24h"),
        (lambda c, f: c.batches.retrieve("batch_0"), openai.NotFoundError, "there is no batch 'batch_0'"),
        (lambda c, f: c.batches.cancel("batch_0"), openai.NotFoundError, "there is no batch 'batch_0'"),
        (lambda c, f: c.files.retrieve("../x"), openai.NotFoundError, ""),
        (lambda c, f: c.files.content("file-0"), openai.NotFoundError, "there is no file 'file-0'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(
    server: Server, refused: Refused, kind: type[openai.APIStatusError], message: str
) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        del http
        file = await upload(client, lines(predict_rows(1, "adp_00")))
        with pytest.raises(kind) as raised:
            await refused(client, file.id)
        assert message in str(raised.value)

    play(server, scenario)


def test_the_oldest_ended_batch_makes_room_and_open_ones_do_not(tmp_path: Any) -> None:
    server = Server(tmp_path, max_batches=2)

    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        content = lines(predict_rows(1, await adapter(http)))
        first = await ended(client, await begin(client, content))
        second = await ended(client, await begin(client, content))
        server.worker.predict_gate.clear()
        third, fourth = await begin(client, content), await begin(client, content)
        with pytest.raises(openai.BadRequestError, match="max_batches"):
            await begin(client, content)
        assert [b.id async for b in client.batches.list(limit=1)] == [fourth.id, third.id]
        for gone in (first, second):
            with pytest.raises(openai.NotFoundError):
                await client.batches.retrieve(gone.id)
        server.worker.predict_gate.set()

    play(server, scenario)
