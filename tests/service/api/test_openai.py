"""OpenAI's surface, called by OpenAI's own client and compared with the native surface."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from model_store.pretrained.catalogue import DEFAULT_BASE
from service.api.openai.wire import ChatCompletionRequest, CompletionRequest, Extras
from service.schemas import demo
from tests.service.api.openai_calls import (
    BASE,
    FREE,
    OPTIONS,
    TASK,
    UNSURE,
    adapter,
    natively,
    play,
    streamed,
    user,
    without_nulls,
)
from tests.service.conftest import Server
from tests.service.fakes import MAX_TOKENS, FakeWorker, served_model

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
