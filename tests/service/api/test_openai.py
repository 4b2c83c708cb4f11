"""OpenAI's surface, called by OpenAI's own client and compared with the native surface."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from model_store.pretrained.catalogue import DEFAULT_BASE
from service.api.openai.wire import ChatCompletionRequest, CompletionRequest, Extras
from service.schemas import demo
from tests.service.conftest import Server, until
from tests.service.fakes import MAX_TOKENS, FakeWorker, served_model

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


# ---- models --------------------------------------------------------------------------------------


def test_models_are_the_base_and_the_adapters_made_for_it(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        ids = sorted([await adapter(http), await adapter(http, FREE)])
        page = await client.models.list()
        base, *adapters = page.data
        assert (base.id, base.object, base.owned_by) == (BASE, "model", "abmll-serve")
        assert abs(base.created - datetime.now().timestamp()) < 60
        assert base.parent is None
        assert base.max_model_len == MAX_TOKENS
        assert base.posterior == "fake-posterior"
        assert [model.id for model in adapters] == ids
        for model in adapters:
            assert model.parent == BASE
            made = (await http.get(f"/v1/adapters/{model.id}")).json()
            assert model.created == datetime.fromisoformat(made["created"]).timestamp()
            assert model.base == made["base"]
            assert await client.models.retrieve(model.id) == model
        assert await client.models.retrieve(BASE) == base

    play(server, scenario)


def test_models_are_listed_by_the_page(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        ids = sorted([await adapter(http, {**TASK, "seed": seed}) for seed in range(3)])
        first = await client.models.list(extra_query={"limit": 2})
        assert [model.id for model in first.data] == [BASE, *ids[:2]]
        assert first.has_more
        rest = await client.models.list(extra_query={"limit": 2, "after": first.last_id})
        assert [model.id for model in rest.data] == ids[2:]
        assert not rest.has_more
        only_base = await client.models.list(extra_query={"limit": 0})
        assert [model.id for model in only_base.data] == [BASE]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.models.list(extra_query={"limit": 1001})
        assert refused.value.param == "limit"

    play(server, scenario)


def test_adapters_of_another_posterior_are_no_models(tmp_path: Path) -> None:
    made: list[str] = []

    async def make(_: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        made.append(await adapter(http))

    async def look(client: openai.AsyncOpenAI, _: httpx.AsyncClient) -> None:
        assert [model.id for model in (await client.models.list()).data] == [BASE]
        for attempt in (
            client.models.retrieve(made[0]),
            client.chat.completions.create(model=made[0], messages=user("fine")),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                await attempt
            assert (refused.value.code, refused.value.param) == ("adapter_mismatch", "model")

    play(Server(tmp_path), make)
    play(Server(tmp_path, FakeWorker(served_model("e" * 64))), look)


def test_ids_of_models_may_have_slashes(tmp_path: Path) -> None:
    served = served_model()
    named = replace(served, base=replace(served.base, id="org/model"))

    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        assert (await client.models.retrieve("org/model")).id == "org/model"
        assert (await http.get("/v1/models/org/model")).json()["id"] == "org/model"
        answer = await client.completions.create(model="org/model", prompt="x", extra_body={"abmll": TASK})
        assert answer.model == "org/model"

    play(Server(tmp_path, FakeWorker(named)), scenario)


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("extras", [{}, {"samples": 0}, {"samples": 3, "seed": 5}, {"options": ["a", "b"]}])
def test_answers_are_those_of_our_own_surface(server: Server, extras: dict[str, Any]) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model, texts = await adapter(http), ["fine", "awful", "so so"]
        ours = await natively(http, adapter_id=model, inputs=texts, **extras)
        completed = await client.completions.create(model=model, prompt=texts, extra_body={"abmll": extras})
        chats = [
            await client.chat.completions.create(
                model=model, messages=user(text), extra_body={"abmll": extras}
            )
            for text in texts
        ]
        assert [without_nulls(choice.abmll) for choice in completed.choices] == ours["predictions"]
        assert [{**without_nulls(chat.choices[0].abmll), "index": i} for i, chat in enumerate(chats)] == ours[
            "predictions"
        ]
        answers = [prediction["answer"] for prediction in ours["predictions"]]
        assert [choice.text for choice in completed.choices] == answers
        assert [chat.choices[0].message.content for chat in chats] == answers
        for chat in chats:
            assert (chat.object, chat.model) == ("chat.completion", model)
            assert chat.id == f"chatcmpl-{chat._request_id}"
            assert chat.choices[0].message.role == "assistant"
            assert chat.choices[0].finish_reason == "stop"
            assert chat.choices[0].logprobs is None
        assert (completed.object, completed.id) == ("text_completion", f"cmpl-{completed._request_id}")
        for field in ("adapter_id", "seed", "warnings", "cache"):
            assert completed.abmll[field] == ours[field]
        assert set(completed.abmll["timings"]) == set(ours["timings"])

    play(server, scenario)


def test_usage_is_that_of_our_own_surface(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        for task, texts in ((TASK, ["fine", "awful"]), (FREE, ["3+3"])):
            model = await adapter(http, task)
            ours = (await natively(http, adapter_id=model, inputs=texts))["usage"]
            answer = await client.completions.create(model=model, prompt=texts)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == ours["prompt_tokens"] == sum(map(len, texts))
            assert answer.usage.completion_tokens == ours["completion_tokens"]
            assert answer.usage.total_tokens == ours["prompt_tokens"] + ours["completion_tokens"]
            assert answer.abmll["support_tokens"] == ours["support_tokens"]

    play(server, scenario)


def test_the_base_model_answers_with_support(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        extras = {**TASK, "adapt": {"steps": 2}}
        ask = {"model": BASE, "messages": user("fine"), "seed": 3, "extra_body": {"abmll": extras}}
        made, again = [await client.chat.completions.create(**ask) for _ in range(2)]
        assert (made.abmll["cache"], again.abmll["cache"]) == ("miss", "hit")
        assert made.model == BASE
        ours = await natively(http, **extras, seed=3, inputs=["fine"])
        assert ours["adapter_id"] == made.abmll["adapter_id"]
        assert (
            without_nulls(made.choices[0].abmll)
            == without_nulls(again.choices[0].abmll)
            == ours["predictions"][0]
        )
        by_id = await client.chat.completions.create(
            model=made.abmll["adapter_id"], messages=user("fine"), seed=3
        )
        assert without_nulls(by_id.choices[0].abmll) == ours["predictions"][0]
        # Fields of calibrated gates are absent, not null.
        assert not {"prediction_id", "explored", "prediction_set"} & set(by_id.choices[0].abmll)

    play(server, scenario)


def test_the_seed_is_openais_unless_ours_is_given(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        for seed, extras, used in ((None, {}, 0), (4, {}, 4), (4, {"seed": 0}, 0), (None, {"seed": 9}, 9)):
            answer = await client.completions.create(
                model=model, prompt="x", seed=seed, extra_body={"abmll": extras}
            )
            assert answer.abmll["seed"] == server.worker.predicted[-1].settings.seed == used

    play(server, scenario)


def test_parts_of_a_message_are_joined_by_line_breaks(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        parts = [{"type": "text", "text": text} for text in ("one", "two")]
        answers = [
            await client.chat.completions.create(model=model, messages=user(content))
            for content in (parts, "one\ntwo")
        ]
        assert [job.prompts[0].text for job in server.worker.predicted] == ["one\ntwo"] * 2
        assert answers[0].choices == answers[1].choices

    play(server, scenario)


def test_free_text_takes_its_length_from_max_tokens(tmp_path: Path) -> None:
    server = Server(tmp_path, max_new_tokens=60)

    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http, FREE)
        written = len("some text")  # the fake writes this, a token a character, whatever the limit
        for limits, used in (
            ({}, 32),
            ({"max_tokens": 5}, 5),
            ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
            ({"max_completion_tokens": 200}, 60),
        ):
            answer = await client.chat.completions.create(
                model=model, messages=user("3+3"), extra_body={"abmll": {"samples": 0}}, **limits
            )
            assert server.worker.predicted[-1].settings.max_new_tokens == used
            assert answer.choices[0].message.content == "some text"
            assert answer.choices[0].finish_reason == ("length" if used <= written else "stop")
        some = await client.completions.create(model=model, prompt="3+3", max_tokens=5)
        assert some.choices[0].finish_reason == "stop"  # 16 samples, 9 tokens in all

    play(server, scenario)


def test_decisions_are_counted_as_on_our_own_surface(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        await client.completions.create(
            model=model, prompt=["a", "b"], extra_body={"abmll": {"gate": UNSURE}}
        )
        await client.chat.completions.create(model=model, messages=user("c"), stream=True)
        lines = (await http.get("/metrics")).text.splitlines()
        assert 'abmll_decisions_total{decision="abstain",reason="confidence_below_minimum"} 2.0' in lines
        assert 'abmll_decisions_total{decision="answer",reason=""} 1.0' in lines
        assert "abmll_confidence_count 3.0" in lines

    play(server, scenario)


# ---- abstaining ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("on_abstain", [None, "answer", "null"])
def test_abstaining_is_in_the_answer_and_the_content_is_withheld_on_request(
    server: Server, on_abstain: str | None, stream: bool
) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        extras = {"gate": UNSURE, **({"on_abstain": on_abstain} if on_abstain else {})}
        ask = {"model": model, "messages": user("fine"), "extra_body": {"abmll": extras}}
        if stream:
            answer, extras_in = await streamed(client, **ask)
        else:
            answer = extras_in = await client.chat.completions.create(**ask)
        prediction, choice = extras_in.choices[0].abmll, answer.choices[0]
        assert choice.finish_reason == "stop"
        assert prediction["decision"] == "abstain"
        assert prediction["abstain_reason"] == "confidence_below_minimum"
        assert prediction["answer"] in OPTIONS
        assert choice.message.content == ("" if on_abstain == "null" else prediction["answer"])
        sure = {**extras, "gate": {"min_confidence": 0.0}}
        answered = await client.chat.completions.create(**{**ask, "extra_body": {"abmll": sure}})
        assert answered.choices[0].abmll["decision"] == "answer"
        assert answered.choices[0].message.content == prediction["answer"]

    play(server, scenario)


# ---- log-probabilities ---------------------------------------------------------------------------


def test_logprobs_of_a_chat_are_the_predictive(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        options = ["yes", "no", "später"]
        model = await adapter(http, {**TASK, "options": options})
        for top in (None, 0, 2, 3, 20):
            asked = {} if top is None else {"top_logprobs": top}
            answer = await client.chat.completions.create(
                model=model, messages=user("fine"), logprobs=True, **asked
            )
            (choice,) = answer.choices
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            (token,) = choice.logprobs.content
            shares = {row["option"]: row["probability"] for row in choice.abmll["distribution"]}
            assert token.token == choice.message.content
            assert math.exp(token.logprob) == pytest.approx(choice.abmll["confidence"])
            assert len(token.top_logprobs) == min(top or 0, 3)
            for row in (token, *token.top_logprobs):
                assert math.exp(row.logprob) == pytest.approx(shares[row.token])
                assert bytes(row.bytes or []).decode() == row.token
            logprobs = [row.logprob for row in token.top_logprobs]
            assert logprobs == sorted(logprobs, reverse=True)
            if (top or 0) >= 3:
                assert sum(map(math.exp, logprobs)) == pytest.approx(1)

    play(server, scenario)


def test_logprobs_of_completions_are_the_predictive(server: Server) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        model = await adapter(http)
        for top in range(6):
            answer = await client.completions.create(model=model, prompt=["fine", "awful"], logprobs=top)
            for choice in answer.choices:
                assert choice.logprobs is not None
                shares = {row["option"]: row["probability"] for row in choice.abmll["distribution"]}
                assert choice.logprobs.tokens == [choice.text]
                assert choice.logprobs.text_offset == [0]
                (logprob,) = choice.logprobs.token_logprobs or []
                assert math.exp(logprob) == pytest.approx(choice.abmll["confidence"])
                (ranked,) = choice.logprobs.top_logprobs or []
                assert list(ranked) == sorted(shares, key=lambda option: -shares[option])[: max(1, top)]
                assert {option: math.exp(value) for option, value in ranked.items()} == pytest.approx(
                    {option: shares[option] for option in ranked}
                )
                if top >= 3:
                    assert sum(map(math.exp, ranked.values())) == pytest.approx(1)

    play(server, scenario)


# ---- streaming -----------------------------------------------------------------------------------


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


# ---- parameters ----------------------------------------------------------------------------------

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


# ---- errors --------------------------------------------------------------------------------------


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


# ---- the documentation ---------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[3] / "docs/interfaces-openai.md").read_text("utf-8")


def default_server(root: Path) -> Server:
    """Return a server whose model has the name of the default base."""
    served = served_model()
    return Server(root, FakeWorker(replace(served, base=replace(served.base, id=DEFAULT_BASE))))


def test_the_examples_of_the_document_are_answered(tmp_path: Path) -> None:
    async def scenario(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        document = (await http.get("/openapi.json")).json()["components"]["schemas"]
        for name, path, answers in (
            ("ChatCompletionRequest", "/v1/chat/completions", 1),
            ("CompletionRequest", "/v1/completions", len(demo.INPUTS)),
        ):
            (example,) = document[name]["examples"]
            response = await http.post(path, json=example)
            assert response.status_code == 200, response.text
            assert len(response.json()["choices"]) == answers

    play(default_server(tmp_path), scenario)


def test_the_pages_example_runs_against_a_server_that_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    address = "http://localhost:8000"
    assert program.count(address) == 1
    with default_server(tmp_path).listening() as running:
        names: dict[str, Any] = {}
        exec(program.replace(address, running.url), names)
        names["client"].close()
        (ours,) = httpx.post(
            f"{running.url}/v1/predict",
            json={"adapter_id": names["adapter"], "inputs": ["The invoice is wrong."]},
        ).json()["predictions"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{ours['answer']} {ours['confidence']:.2f}"
    assert printed[1] == ours["answer"]


def test_the_page_names_every_parameter() -> None:
    names = set(re.findall(r"`(\w+)", PAGE))
    for model in (ChatCompletionRequest, CompletionRequest, Extras):
        assert set(model.model_fields) <= names, set(model.model_fields) - names
