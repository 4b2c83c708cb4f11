"""Streams of OpenAI's surface come to the same as its answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.service.api.openai_calls import (
    FREE,
    TASK,
    adapter,
    play,
    streamed,
    user,
)
from tests.service.conftest import Server


def stable(answer: ChatCompletion, extras: Any) -> dict[str, Any]:
    """Return the fields that are equal whenever the same chat is answered.

    `extras` is the chunk with our fields, which the client does not put together.
    """
    choice = answer.choices[0]
    return {
        "model": answer.model,
        "content": choice.message.content,
        "role": choice.message.role,
        "finish_reason": choice.finish_reason,
        "logprobs": choice.logprobs and choice.logprobs.model_dump(exclude_none=True),
        "prediction": extras.choices[0].abmll,
        "usage": answer.usage and answer.usage.model_dump(exclude_none=True),
        "adapter_id": extras.abmll["adapter_id"],
    }


@pytest.mark.parametrize("task", [TASK, FREE])
def test_a_streamed_chat_comes_to_the_same(server: Server, task: dict[str, Any]) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http, task)
        ask = {"model": model, "messages": user("fine"), "logprobs": True, "top_logprobs": 2}
        whole = await client.chat.completions.create(**ask)
        answer, last = await streamed(client, **ask, stream_options={"include_usage": True})
        assert stable(answer, last) == stable(whole, whole)

    play(server, scenario)


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
def test_the_chunks_of_a_chat_are_openais(server: Server, options: dict[str, bool] | None) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        body = {"model": model, "messages": user("fine"), "stream": True, "stream_options": options}
        response = await http.post("/v1/chat/completions", json=body)
        assert response.headers["content-type"].startswith("text/event-stream")
        *data, done, end = response.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        chunks = [json.loads(line.removeprefix("data: ")) for line in data]
        asked = bool(options and options["include_usage"])
        role, content, last = chunks[:3]
        assert len(chunks) == (4 if asked else 3)
        assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{response.headers['x-request-id']}"}
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert content["choices"][0]["delta"] == {"content": last["choices"][0]["abmll"]["answer"]}
        assert last["choices"][0]["delta"] == {}
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:3]]
        assert reasons == [None, None, "stop"]
        assert last["abmll"]["adapter_id"] == model
        for chunk in chunks[:3]:
            assert chunk.get("usage", "absent") == (None if asked else "absent")
        if asked:
            assert chunks[3]["choices"] == []
            assert chunks[3]["usage"]["prompt_tokens"] == len("fine")

    play(server, scenario)


def test_streamed_completions_come_to_the_same(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        ask = {"model": model, "prompt": ["fine", "awful"], "logprobs": 2}
        whole = await client.completions.create(**ask)
        chunks = [
            chunk
            async for chunk in await client.completions.create(
                **ask, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert chunks[-1].usage == whole.usage
        for choice in whole.choices:
            parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
            assert "".join(part.text for part in parts) == choice.text
            assert [part.finish_reason for part in parts] == [None, "stop"]
            assert parts[0].logprobs == choice.logprobs
            assert parts[-1].abmll == choice.abmll

    play(server, scenario)
