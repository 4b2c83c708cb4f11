"""Both wires of typed questions, called by the clients that they are for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import typesafe_sdk as typesafe
from openai.types import Decision
from typesafe_sdk import Choice, Noul, Score

from tests.service.conftest import Listening, Server

BASE = "fake-1b"
INPUT = "I was charged twice. Please help today."
CASES = [
    {"input": "Thanks!", "answers": {"urgent": False, "team": "billing", "anger": 0}},
    {"input": "Help! Where is it?", "answers": {"urgent": True, "team": "delivery", "anger": None}},
]
QUESTIONS: Any = [
    {"type": "predicate", "name": "urgent", "instructions": "Is it urgent?"},
    {
        "type": "choice",
        "name": "team",
        "instructions": "Which team answers it?",
        "choices": [{"value": "billing", "description": "Payments."}, {"value": "delivery"}, {"value": True}],
    },
    {
        "type": "score",
        "instructions": "How angry is the customer?",
        "name": "anger",
        "levels": [{"label": "calm"}, {"label": "cross"}],
    },
]
NAMED = {
    "urgent": Noul(instructions="Is it urgent?", criteria={"true": "They ask for help today."}),
    "team": Choice(instructions={"task": "Which team?"}, criteria={"billing": "Payments.", "delivery": None}),
    "anger": Score(criteria=["calm", {"tone": "cross"}]),
}
STATE: Any = {"mail": INPUT, "customer": {"since": 2019, "vip": True}}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Listening]:
    with Server(tmp_path).listening() as running:
        yield running


# ---- OpenAI --------------------------------------------------------------------------------------


def check_decision(decision: Decision) -> None:
    urgent, team, anger = decision.answers
    assert (urgent.type, team.type, anger.type) == ("predicate", "choice", "score")
    assert (urgent.name, team.name, anger.name) == ("urgent", "team", "anger")
    assert 0 < urgent.probability < 1
    assert [row.value for row in team.probabilities] == ["billing", "delivery", True]
    assert sum(row.probability for row in team.probabilities) == pytest.approx(1)
    by_value = {(type(row.value), row.value): row.probability for row in team.probabilities}
    assert by_value[type(team.choice), team.choice] == pytest.approx(team.confidence)
    assert [(row.value, row.label) for row in anger.probabilities] == [(0, "calm"), (1, "cross")]
    assert anger.score == pytest.approx(anger.probabilities[1].probability)
    assert all(answer.abmll["decision"] == "answer" for answer in decision.answers)
    usage = decision.usage
    assert usage.input_tokens == usage.total_tokens > 0
    assert (usage.output_tokens, usage.input_tokens_details.cached_tokens) == (0, 0)


def test_openais_client_reads_a_decision(running: Listening) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        decision = client.decisions.create(model=BASE, input=INPUT, questions=QUESTIONS)
        check_decision(decision)
        assert decision.model == BASE
        spoken = client.decisions.create(
            model=BASE, input=[{"role": "user", "content": INPUT}], questions=QUESTIONS
        )
        assert spoken.answers == decision.answers
        taught = client.decisions.create(
            model=BASE, input=INPUT, questions=QUESTIONS, extra_body={"abmll": {"cases": CASES, "samples": 4}}
        )
        check_decision(taught)
        assert taught.abmll["adapter_id"].startswith("adp_")


def test_openais_asynchronous_client_reads_a_decision(running: Listening) -> None:
    async def scenario() -> None:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
            decision = await client.decisions.create(model=BASE, input=INPUT, questions=QUESTIONS)
            check_decision(decision)

    asyncio.run(scenario())


def test_openais_client_reads_refusals_and_errors(running: Listening) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        extras = {"abmll": {"gate": {"min_confidence": 1.0}, "refuse": True}}
        decision = client.decisions.create(model=BASE, input=INPUT, questions=QUESTIONS, extra_body=extras)
        assert [(answer.type, answer.name) for answer in decision.answers] == [
            ("refusal", "urgent"), ("refusal", "team"), ("refusal", "anger"),
        ]  # fmt: skip
        with pytest.raises(openai.BadRequestError) as refused:
            client.decisions.create(model=BASE, input=INPUT, questions=[{**QUESTIONS[0], "instructions": ""}])
        assert refused.value.param == "questions[0].instructions"


# ---- TypeSafe ------------------------------------------------------------------------------------


def check_answers(answer: typesafe.SystemOneResponse) -> None:
    assert 0 < answer.nouls["urgent"].noul < 1
    team, anger = answer.choices["team"], answer.scores["anger"]
    assert set(team.probabilities) == {"billing", "delivery"}
    assert team.confidence == pytest.approx(max(team.probabilities.values()))
    assert anger.legend == {0: "calm", 1: {"tone": "cross"}}
    assert anger.score == pytest.approx(anger.probabilities[1])
    assert answer.usage.input_tokens > 0
    assert answer.request_id


def test_typesafes_client_reads_answers(running: Listening) -> None:
    with typesafe.TypeSafeClient(api_key="any", base_url=running.url, model=BASE) as client:
        answer = client.system_one(STATE, NAMED)
        check_answers(answer)
        assert answer.model == BASE
        cases = [{"state": row["input"], "answers": row["answers"]} for row in CASES]
        taught = client.system_one(STATE, NAMED, extra_body={"abmll": {"cases": cases}})
        check_answers(taught)
        adapter_id = taught.raw_http_response.json()["abmll"]["adapter_id"]
        assert adapter_id.startswith("adp_")


def test_typesafes_asynchronous_client_reads_answers(running: Listening) -> None:
    async def scenario() -> None:
        async with typesafe.AsyncTypeSafeClient(api_key="any", base_url=running.url, model=BASE) as client:
            check_answers(await client.system_one(STATE, NAMED))

    asyncio.run(scenario())


def test_typesafes_client_reads_errors(running: Listening) -> None:
    with typesafe.TypeSafeClient(api_key="any", base_url=running.url, model=BASE) as client:
        with pytest.raises(typesafe.TypeSafeUnprocessableEntityError) as refused:
            client.system_one(STATE, {"anger": Score(criteria=["only one"])})
        message = "questions.anger.score.criteria: List should have at least 2 items after validation, not 1"
        assert message in str(refused.value)
        assert refused.value.request_id
        photo = typesafe.Image(b"\x89PNG\r\n\x1a\n")
        with pytest.raises(typesafe.TypeSafeAPIError, match="send the body as JSON"):
            client.system_one(photo, NAMED)


# ---- models --------------------------------------------------------------------------------------


def test_both_clients_list_the_models(running: Listening) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any") as client:
        assert [model.id for model in client.models.list()] == [BASE]
    with typesafe.TypeSafeClient(api_key="any", base_url=running.url) as client:
        listed = client.models.list()
        (model,) = listed.models
        assert (model.name, len(model.release_date)) == (BASE, len("2026-11-30"))
        assert model.description.startswith("Base model")
        assert listed.request_id


# ---- LangChain -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_langchains_decisions_are_read(running: Listening) -> None:
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_openai import decisions

    questions = {
        "urgent": decisions.Predicate(instructions="Is it urgent?"),
        "team": decisions.Choice(instructions="Which team?", choices={"billing": "Payments.", "other": None}),
        "anger": decisions.Score(instructions="How angry?", levels=["calm", "cross"]),
    }
    wanted = {"model": BASE, "base_url": f"{running.url}/v1", "api_key": "any", "max_retries": 0}

    async def later() -> decisions.DecisionResponse:
        async with openai.DefaultAsyncHttpxClient() as http:
            runnable = decisions.OpenAIDecisions(**wanted, http_async_client=http)
            return await runnable.ainvoke({"input": INPUT, "questions": questions})

    states = (INPUT, [HumanMessage(INPUT)], [HumanMessage("Hi"), AIMessage("Hello")], {"mail": INPUT})
    with openai.DefaultHttpxClient() as http:
        runnable = decisions.OpenAIDecisions(**wanted, http_client=http)
        found = [runnable.invoke({"input": state, "questions": questions}) for state in states]
    for response in found:
        assert 0 < response.predicates["urgent"].probability < 1
        assert set(response.choices["team"].probabilities) == {"billing", "other"}
        assert response.scores["anger"].legend == {0: "calm", 1: "cross"}
        assert response.usage.input_tokens
        assert response.request_id
    assert found[0].answers == found[1].answers == asyncio.run(later()).answers
