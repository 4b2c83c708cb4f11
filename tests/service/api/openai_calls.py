"""Calls of OpenAI's surface by OpenAI's own client, beside those of the native surface."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
from openai.types.chat import ChatCompletion

from tests.service.conftest import Server

BASE = "fake-1b"
OPTIONS = ["yes", "no", "maybe"]
SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
TASK = {"support": SUPPORT, "options": OPTIONS}
FREE = {"support": [{"input": "2+2", "output": "four"}]}
UNSURE = {"min_confidence": 1.0}
OpenAiScenario = Callable[[openai.AsyncOpenAI, httpx.AsyncClient], Awaitable[None]]


def play(server: Server, scenario: OpenAiScenario, *, ready: bool = True) -> None:
    """Run `scenario` with OpenAI's client, and a plain HTTP client for the native surface."""

    async def both(http: httpx.AsyncClient) -> None:
        client = openai.AsyncOpenAI(
            base_url="http://server/v1", api_key="none", http_client=http, max_retries=0
        )
        await scenario(client, http)

    server.run(both, ready=ready)


async def adapter(http: httpx.AsyncClient, body: dict[str, Any] = TASK) -> str:
    response = await http.post("/v1/adapters", json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def natively(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post("/v1/predict", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def user(text: Any) -> Any:
    return [{"role": "user", "content": text}]


def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """Return the answer without null fields, which the native surface leaves out."""
    return {
        key: without_nulls(item) if isinstance(item, dict) else item
        for key, item in value.items()
        if item is not None
    }


async def streamed(client: openai.AsyncOpenAI, **ask: Any) -> tuple[ChatCompletion, Any]:
    """Return the answer that the client puts together, and the last chunk with a choice.

    That chunk has the fields that are ours.
    """
    async with client.chat.completions.stream(**ask) as events:
        chunks = [event.chunk async for event in events if event.type == "chunk"]
        answer = await events.get_final_completion()
    return answer, [chunk for chunk in chunks if chunk.choices][-1]
