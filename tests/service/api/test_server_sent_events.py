"""Every line that a client may see in a stream is a whole event's data, whatever the texts hold."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from service.api.server_sent_events import data_event
from tests.service.conftest import Server

# All that some reader takes for the end of a line: `str.splitlines` knows each of them.
ENDS = ["\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def lines_of(text: str) -> list[str]:
    """The data of events as httpx, requests and `splitlines` find it."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("end", ENDS, ids=[f"U+{ord(end):04X}" for end in ENDS])
def test_one_event_is_one_line_and_its_text_comes_back(end: str) -> None:
    assert len(end.join("ab").splitlines()) == 2
    text = f"a{end}{end}b"
    event = data_event(json.dumps(text, ensure_ascii=False), "done").decode()
    assert [json.loads(line) for line in lines_of(event)] == [text]
    assert len(event.splitlines()) == 3  # the name, the data, the end


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029"], ids=["U+0085", "U+2028", "U+2029"])
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/chat/completions", "/v1/completions"])
def test_streams_of_every_surface_are_read_line_by_line(server: Server, path: str, end: str) -> None:
    options = [f"one{end}line", f"two{end}lines"]
    support = [{"input": f"text{end}{i}", "output": option} for i, option in enumerate(options)]
    task: dict[str, Any] = {"support": support, "options": options}
    message = {"role": "user", "content": f"x{end}y"}
    body = {
        "/v1/predict": {**task, "inputs": [f"x{end}y"]},
        "/v1/chat/completions": {"model": "fake-1b", "messages": [message], "abmll": task},
        "/v1/completions": {"model": "fake-1b", "prompt": f"x{end}y", "abmll": task},
    }[path]

    async def scenario(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200
            seen = [line async for line in response.aiter_lines()]
        data = [line.removeprefix("data: ") for line in seen if line.startswith("data: ")]
        read = [json.loads(line) for line in data if line != "[DONE]"]
        assert any(option in json.dumps(read, ensure_ascii=False) for option in options)
        named = ("data: ", "event: ", ": ")
        assert [line for line in seen if line and not line.startswith(named)] == []

    server.run(scenario)


def test_the_error_of_a_stream_is_one_line_too(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answers = await client.post("/v1/adapters", json={
            "support": [{"input": "a", "output": "yes"}, {"input": "b", "output": "no"}], "options": ["yes", "no"],
        })  # fmt: skip
        server.worker.fail = ValueError("broken\u2028in two")
        body = {"adapter_id": answers.json()["id"], "inputs": ["x"], "stream": True}
        text = (await client.post("/v1/predict", json=body)).text
        assert [set(json.loads(line)) for line in lines_of(text)][-1] == {"error"}

    server.run(scenario)
