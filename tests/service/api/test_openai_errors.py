"""Errors of OpenAI's surface are those that OpenAI's client knows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import openai
import pytest

from tests.service.api.openai_calls import (
    BASE,
    TASK,
    adapter,
    play,
    user,
)
from tests.service.conftest import Server, until


def check_shape(error: openai.APIStatusError, status: int, kind: str, code: str) -> None:
    assert set(error.response.json()) == {"error"}
    assert list(error.response.json()["error"]) == ["message", "type", "param", "code"]
    assert (error.status_code, error.type, error.code) == (status, kind, code)
    assert error.request_id == error.response.headers["x-request-id"]


def test_unknown_models_are_not_found(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        support = {"abmll": TASK}
        for attempt in (
            client.models.retrieve("gpt-9"),
            client.chat.completions.create(model="gpt-9", messages=user("x")),
            client.chat.completions.create(model="gpt-9", messages=user("x"), stream=True),
            client.chat.completions.create(model="gpt-9", messages=user("x"), extra_body=support),
            client.completions.create(model="adp_" + "0" * 32, prompt="x"),
        ):
            with pytest.raises(openai.NotFoundError) as unknown:
                await attempt
            check_shape(unknown.value, 404, "invalid_request_error", "model_not_found")
            assert unknown.value.param == "model"

    play(server, scenario)


def test_a_full_queue_is_a_rate_limit_that_says_when_to_come_back(tmp_path: Path) -> None:
    server = Server(tmp_path, queue_limit=1)

    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        ask = {"model": await adapter(http), "prompt": "x"}
        server.worker.predict_gate.clear()
        first = asyncio.create_task(client.completions.create(**ask))
        await until(lambda: len(server.worker.predicted) == 1)
        with pytest.raises(openai.RateLimitError) as full:
            await client.completions.create(**ask)
        server.worker.predict_gate.set()
        check_shape(full.value, 429, "rate_limit_error", "rate_limit_exceeded")
        assert int(full.value.response.headers["retry-after"]) >= 1
        assert (await first).choices[0].finish_reason == "stop"

    play(server, scenario)


def test_failures_are_server_errors(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        server.worker.fail = RuntimeError("secret")
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model=model, messages=user("x"))
        check_shape(failed.value, 500, "server_error", "internal_error")
        assert "secret" not in failed.value.message

    play(server, scenario)


def test_a_server_that_loads_says_so(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        for attempt in (
            client.models.list(),
            client.models.retrieve(BASE),
            client.completions.create(model=BASE, prompt="x"),
        ):
            with pytest.raises(openai.InternalServerError) as early:
                await attempt
            check_shape(early.value, 503, "server_error", "starting")
            assert early.value.response.headers["retry-after"]
        server.worker.load_gate.set()
        await server.app.state.loading

    server.worker.load_gate.clear()
    play(server, scenario, ready=False)


def test_what_is_no_request_has_openais_errors_too(tmp_path: Path) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        with pytest.raises(openai.APIStatusError) as large:
            await client.completions.create(model=BASE, prompt="x" * 3000)
        check_shape(large.value, 413, "invalid_request_error", "body_too_large")
        for path in ("/v1/completions", "/v1/chat/completions"):
            json_type = {"content-type": "application/json"}
            for response, status, code in (
                (await http.post(path, content=b"{", headers=json_type), 400, "malformed_json"),
                (await http.post(path, content=b"{}"), 415, "unsupported_media_type"),
                (await http.post(path, json=[]), 400, "invalid_request"),
                (await http.get(path), 405, "method_not_allowed"),
                (await http.get("/v1/chat/nope"), 404, "not_found"),
            ):
                assert response.status_code == status
                error = response.json()["error"]
                assert list(error) == ["message", "type", "param", "code"]
                assert (error["type"], error["code"]) == ("invalid_request_error", code)

    play(Server(tmp_path, max_body_bytes=2000), scenario)
