"""Parameters of OpenAI's surface: what changes nothing is taken, what would is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.api.openai.wire import ChatCompletionRequest, CompletionRequest
from tests.service.api.openai_calls import (
    BASE,
    OPTIONS,
    SUPPORT,
    TASK,
    adapter,
    play,
    user,
)
from tests.service.conftest import Server
from tests.service.fakes import MAX_TOKENS

HARMLESS: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 1,
    "n": 1,
    "max_tokens": 100_000,
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "stop": None,
    "logit_bias": {},
    "user": "someone",
    "stream": False,
    "seed": None,
}
HARMLESS_IN_CHATS: dict[str, Any] = {
    **HARMLESS,
    "stop": [],
    "max_completion_tokens": 100_000,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "service_tier": "auto",
    "store": False,
    "verbosity": "medium",
    "metadata": {"ticket": "7"},
    "prompt_cache_key": "x",
    "safety_identifier": "x",
    "logprobs": False,
    "audio": None,
    "prediction": {"type": "content", "content": "yes"},
    "reasoning_effort": "none",
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "parallel_tool_calls": True,
    "top_logprobs": 0,
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}


# Each with a chat's usual fields: clients and what is built on them send them unasked.
HARMLESS_TOGETHER: list[dict[str, Any]] = [
    {"tool_choice": "auto", "function_call": "auto"},
    {"tools": [FUNCTION], "tool_choice": "none"},
    {"functions": [FUNCTION["function"]], "function_call": "none"},
    {"tools": None, "tool_choice": None, "parallel_tool_calls": False},
    {"service_tier": "flex"},
    {"service_tier": "priority", "logprobs": False, "top_logprobs": 0},
    {
        "logprobs": None,
        "top_logprobs": None,
        "reasoning_effort": None,
        "response_format": None,
        "modalities": None,
    },
    {"messages": user([{"type": "text", "text": "fine", "prompt_cache_breakpoint": {"mode": "explicit"}}])},
]
REFUSED: dict[str, Any] = {
    "n": 2,
    "temperature": 2.1,
    "top_p": 1.1,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "stop": ["\n"],
    "logit_bias": {"50256": -100},
    "max_tokens": 0,
    "seed": -1,
    "smaples": 3,
    "options": ["yes", "no"],
}
REFUSED_IN_CHATS: dict[str, Any] = {
    **REFUSED,
    "top_logprobs": 3,
    "logprobs": "yes",
    "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "store": True,
    "verbosity": "high",
    "reasoning_effort": "high",
    "tools": [FUNCTION],
    "tool_choice": "required",
    "functions": [FUNCTION["function"]],
    "function_call": {"name": "f"},
    "moderation": {"model": "m"},
    "web_search_options": {"search_context_size": "low"},
}
REFUSED_IN_COMPLETIONS: dict[str, Any] = {**REFUSED, "best_of": 2, "echo": True, "suffix": "!", "logprobs": 6}


def test_harmless_parameters_change_nothing(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        chat = {"model": model, "messages": user("fine")}
        plain = await client.chat.completions.create(**chat)
        adorned = await client.chat.completions.create(**chat, extra_body=HARMLESS_IN_CHATS)
        assert adorned.choices == plain.choices
        text = {"model": model, "prompt": "fine"}
        neutral = {**HARMLESS, "best_of": 1, "echo": False, "suffix": None, "logprobs": None}
        completed = await client.completions.create(**text, extra_body=neutral)
        assert completed.choices == (await client.completions.create(**text)).choices

    play(server, scenario)


@pytest.mark.parametrize("asked", HARMLESS_TOGETHER, ids=", ".join)
def test_what_changes_nothing_only_together_is_taken_too(server: Server, asked: dict[str, Any]) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        body = {"model": await adapter(http), "messages": user("fine")}
        plain = await http.post("/v1/chat/completions", json=body)
        adorned = await http.post("/v1/chat/completions", json={**body, **asked})
        assert adorned.status_code == 200, adorned.text
        assert adorned.json()["choices"] == plain.json()["choices"]

    play(server, scenario)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tools": [FUNCTION], "tool_choice": "auto"}, "tools"),
        ({"tools": [FUNCTION], "function_call": "none"}, "tools"),
        ({"tools": [FUNCTION], "tool_choice": FUNCTION}, "tool_choice"),
        ({"functions": [FUNCTION["function"]]}, "functions"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_what_would_change_the_answer_is_refused(server: Server, asked: dict[str, Any], param: str) -> None:
    body = {"model": "adp_0", "messages": user("fine"), **asked}
    refused = server.post("/v1/chat/completions", body)
    assert (refused.status_code, refused.json()["error"]["param"].partition(".")[0]) == (400, param)


@pytest.mark.parametrize(
    ("route", "asked", "refused"),
    [
        ("/chat/completions", {"messages": user("fine")}, REFUSED_IN_CHATS),
        ("/completions", {"prompt": "fine"}, REFUSED_IN_COMPLETIONS),
    ],
)
def test_other_parameters_are_refused_by_name(
    server: Server, route: str, asked: dict[str, Any], refused: dict[str, Any]
) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        for name, value in refused.items():
            with pytest.raises(openai.BadRequestError) as error:
                await client.post(route, body={"model": model, **asked, name: value}, cast_to=object)
            assert re.split(r"[.\[]", error.value.param or "")[0] == name
            assert (error.value.type, error.value.code) == ("invalid_request_error", "invalid_request")
        assert server.worker.predicted == []

    play(server, scenario)


def test_every_parameter_is_tried() -> None:
    """Other tests show the effect of the parameters in `shown`."""
    shown = {"model", "messages", "prompt", "abmll", "stream_options"}
    chats = {*HARMLESS_IN_CHATS, *REFUSED_IN_CHATS}
    texts = {*HARMLESS, *REFUSED_IN_COMPLETIONS}
    assert set(ChatCompletionRequest.model_fields) <= chats | shown
    assert set(CompletionRequest.model_fields) <= texts | shown


def test_parameters_are_called_as_in_the_client() -> None:
    from openai.types import completion_create_params as texts
    from openai.types.chat import completion_create_params as chats

    for model, theirs in ((ChatCompletionRequest, chats), (CompletionRequest, texts)):
        known = {
            *theirs.CompletionCreateParamsBase.__annotations__,
            *theirs.CompletionCreateParamsStreaming.__annotations__,
        }
        assert set(model.model_fields) - known == {"abmll"}


IMAGE = [{"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}]
AUDIO = [
    {"type": "text", "text": "hear"},
    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
]
SYSTEM = {"role": "system", "content": "Be brief."}


# (fields of a chat, code, param, a part of the message)
BAD_CHATS: dict[str, tuple[dict[str, Any], str, str | None, str]] = {
    "a system message": ({"messages": [SYSTEM, *user("x")]}, "invalid_request", "messages", "one message"),
    "only a system message": ({"messages": [SYSTEM]}, "invalid_request", "messages", "role user"),
    "earlier turns": (
        {"messages": [*user("x"), {"role": "assistant", "content": "yes"}, *user("y")]},
        "invalid_request", "messages", "one message",
    ),
    "no message": ({"messages": []}, "invalid_request", "messages", "at least 1"),
    "messages as text": ({"messages": "x"}, "invalid_request", "messages", "valid list"),
    "a message as text": ({"messages": ["x"]}, "invalid_request", "messages[0]", "valid dictionary"),
    "an image": ({"messages": user(IMAGE)}, "invalid_request", "messages[0].content[0].type", "'text'"),
    "sound": ({"messages": user(AUDIO)}, "invalid_request", "messages[0].content[1].type", "'text'"),
    "no parts": ({"messages": user([])}, "invalid_request", "messages[0].content", "at least 1"),
    "no content": ({"messages": user(None)}, "invalid_request", "messages[0].content", "a text, or a list of text parts"),
    "top_logprobs alone": ({"top_logprobs": 2}, "invalid_request", "top_logprobs", "needs logprobs"),
    "top_logprobs above": ({"logprobs": True, "top_logprobs": 21}, "invalid_request", "top_logprobs", "equal to 20"),
    "the base without support": ({"model": BASE}, "invalid_request", "model", "abmll.support"),
    "adapt without support": ({"abmll": {"adapt": {"steps": 1}}}, "invalid_request", "abmll", "already fitted"),
    "an unknown extra": ({"abmll": {"smaples": 1}}, "invalid_request", "abmll.smaples", "not permitted"),
    "samples above": ({"abmll": {"samples": 65}}, "invalid_request", "abmll.samples", "equal to 64"),
    "samples over the limit": ({"abmll": {"samples": 33}}, "limit_exceeded", "abmll.samples", "limit is 32"),
    "a gate out of range": (
        {"abmll": {"gate": {"min_margin": 2}}}, "invalid_request", "abmll.gate.min_margin", "equal to 1",
    ),
    "one option": ({"abmll": {"options": ["a"]}}, "invalid_options", "messages[0].content", "at least two"),
    "too many options": ({"abmll": {"options": list("abcd")}}, "limit_exceeded", "abmll.options", "limit is 3"),
    "bad support": (
        {"model": BASE, "abmll": {**TASK, "support": [*SUPPORT, {"input": "x", "output": "perhaps"}]}},
        "invalid_options", "abmll.support[2].output", "'perhaps'",
    ),
    "too many steps": (
        {"model": BASE, "abmll": {**TASK, "adapt": {"steps": 65}}}, "limit_exceeded", "abmll.adapt.steps", "limit is 64",
    ),
    "a long message": (
        {"messages": user("a" * MAX_TOKENS)}, "context_length_exceeded", "messages[0].content", f"at most {MAX_TOKENS}",
    ),
}  # fmt: skip


def test_a_bad_chat_is_refused_before_any_model_work(tmp_path: Path) -> None:
    server = Server(tmp_path, max_samples=32, max_options=3)

    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        server.worker.adapted.clear()
        for case, (change, code, param, message) in BAD_CHATS.items():
            body = {"model": model, "messages": user("fine"), "stream": case > "c", **change}
            with pytest.raises(openai.BadRequestError) as refused:
                await client.post("/chat/completions", body=body, cast_to=object)
            assert (refused.value.code, refused.value.param) == (code, param), case
            assert message in refused.value.message, case
        assert server.worker.predicted == server.worker.adapted == []

    play(server, scenario)


# (fields of a completion, code, param, a part of the message)
BAD_COMPLETIONS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no prompt": ({"prompt": None}, "invalid_request", "prompt", "a text, or a list of texts"),
    "samples in capitals": (
        {"abmll": {"samples": "AUTO"}},
        "invalid_request",
        "abmll.samples",
        "from 0 to 64, or 'auto'",
    ),
    "no prompts": ({"prompt": []}, "invalid_request", "prompt", "at least 1"),
    "token ids": ({"prompt": [1, 2]}, "invalid_request", "prompt[0]", "valid string"),
    "too many prompts": ({"prompt": ["a"] * 4}, "limit_exceeded", "prompt", "limit is 3"),
    "a long prompt": ({"prompt": ["a", "a" * MAX_TOKENS]}, "context_length_exceeded", "prompt[1]", "at most"),
}


def test_a_bad_completion_is_refused(tmp_path: Path) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        for case, (change, code, param, message) in BAD_COMPLETIONS.items():
            with pytest.raises(openai.BadRequestError) as refused:
                await client.post("/completions", body={"model": model, **change}, cast_to=object)
            assert (refused.value.code, refused.value.param) == (code, param), case
            assert message in refused.value.message, case

    play(Server(tmp_path, max_inputs=3), scenario)


def test_options_that_the_examples_do_not_share_are_asked_for(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        rows = [{**row, "options": ["yes", "no", str(i)]} for i, row in enumerate(SUPPORT)]
        model = await adapter(http, {"support": rows})
        ask = {"model": model, "messages": user("fine")}
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**ask)
        assert (refused.value.code, refused.value.param) == ("invalid_options", "abmll.options")
        answer = await client.chat.completions.create(**ask, extra_body={"abmll": {"options": OPTIONS}})
        assert answer.choices[0].message.content in OPTIONS

    play(server, scenario)
