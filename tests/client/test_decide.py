"""Typed questions with the clients: against the server's own answers, blocking and to await."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from abmll_client import AsyncClient, Choice, Client, InvalidRequestError, Predicate, Score, cases_from_frame
from abmll_client.questions import case_rows, question_rows, values_of
from service import schemas
from service.embedded import Embedded
from tests.client.conftest import Server

URGENT = Predicate("urgent", "Is it urgent?", yes="Today.")
TEAM = Choice("team", "Which team?", {"billing": "Payments.", "it": ""})
ANGER = Score("anger", "How angry?", ["calm", "cross", "furious"])
QUESTIONS = [URGENT, TEAM, ANGER]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("the bill is wrong", {"urgent": True, "team": "billing", "anger": 2}),
    ("no hurry", {"urgent": False, "team": None, "anger": "calm"}),
]


@pytest.fixture(scope="module")
def client(shared_embedded: Embedded) -> Iterator[Client]:
    with shared_embedded.client() as connected:
        yield connected


def test_questions_are_the_json_of_requests() -> None:
    rows = question_rows(QUESTIONS)
    body = {"questions": rows, "cases": case_rows(CASES)}
    parsed = schemas.CreateAdapterRequest.model_validate(body)
    assert [question.model_dump(exclude_none=True) for question in parsed.questions or ()] == [
        {"name": "urgent", "instructions": "Is it urgent?", "type": "predicate",
         "criteria": {"yes": "Today.", "no": ""}},
        {"name": "team", "instructions": "Which team?", "type": "choice",
         "choices": [{"value": "billing", "description": "Payments."}, {"value": "it", "description": ""}]},
        {"name": "anger", "instructions": "How angry?", "type": "score",
         "levels": [{"label": "calm"}, {"label": "cross"}, {"label": "furious"}]},
    ]  # fmt: skip
    assert [values_of(question.to_json()) for question in QUESTIONS] == [
        [True, False], ["billing", "it"], ["calm", "cross", "furious"],
    ]  # fmt: skip
    assert Choice("x", "?", [True, "true"]).to_json()["choices"] == [{"value": True}, {"value": "true"}]
    assert question_rows(["team", *rows]) == ["team", *rows]


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ("urgent", "questions are a list of questions, not one text"),
        (URGENT.to_json(), "questions are a list of rows, not one row"),
        ([3], "questions\\[0\\] is a Predicate, a Choice, a Score, a row or a name, not int"),
        ([Choice("x", "?", "ab")], "the values are a list of texts, not one text"),
    ],
)
def test_what_is_no_list_of_questions_is_refused_before_it_is_sent(questions: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        question_rows(questions)


@pytest.mark.parametrize("case", ["a text", ("a", "b"), ("a",), (1, {}), 3])
def test_what_is_no_case_is_refused_before_it_is_sent(case: Any) -> None:
    with pytest.raises(TypeError, match="cases\\[1\\] is a pair of a text and its answers"):
        case_rows([*CASES[:1], case])


def test_a_row_is_no_text_to_ask_about(client: Client) -> None:
    with pytest.raises(TypeError, match="inputs\\[1\\] is a text, not dict"):
        client.decide(["a", {"input": "b"}], QUESTIONS)  # type: ignore[list-item]


def test_answers_are_by_input_and_question(client: Client) -> None:
    made = client.create_adapter(questions=QUESTIONS, cases=CASES)
    assert [(row.question["name"], row.cases, row.cannot_tell) for row in made.questions or ()] == [
        ("urgent", 2, 0), ("team", 2, 1), ("anger", 2, 0),
    ]  # fmt: skip
    decided = client.decide(["x", "y"], model=made.id, gates={"team": {"min_confidence": 1}})
    assert (decided.adapter_id, [row.index for row in decided.results]) == (made.id, [0, 1])
    answers = decided.results[1].answers
    assert list(answers) == ["urgent", "team", "anger"]
    assert isinstance(answers["urgent"].answer, bool)
    assert [answer.decision for answer in answers.values()] == ["answer", "abstain", "answer"]
    assert all(answer.learned for answer in answers.values())
    inline = client.decide(["x", "y"], QUESTIONS, cases=CASES, gates={"team": {"min_confidence": 1}})
    assert inline.results == decided.results
    assert client.decide(["y"], ["anger"], model=made.id).results[0].answers["anger"] == answers["anger"]
    again = client.create_adapter(questions=[row.question for row in made.questions or ()], cases=CASES)
    assert again.id == made.id


def test_a_refusal_names_the_place(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        client.create_adapter(questions=QUESTIONS, cases=[("x", {"team": "sales"})])
    assert (refused.value.code, refused.value.param) == ("invalid_options", "cases[0].answers.team")


def test_any_number_of_inputs_is_asked_about_by_one_version_of_a_name(server: Server) -> None:
    sent: list[Any] = []

    async def scenario(http: httpx.AsyncClient) -> None:
        class Moving(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                answer = await inner.handle_async_request(request)
                if request.url.path == "/v1/decide":
                    body = httpx.Response(200, content=await answer.aread()).json()
                    sent.append((body["model"], len(body["results"])))
                    await server.engine.names.put("inbox", ids[1], "fake-1b")
                return answer

        inner = httpx.ASGITransport(server.app)
        async with AsyncClient("http://server", transport=Moving()) as client:
            ids = [
                (await client.create_adapter(questions=QUESTIONS, cases=CASES, seed=seed)).id
                for seed in range(2)
            ]
            await client.put_name("inbox", ids[0])
            most = (await client.limits()).max_inputs
            texts = [f"mail {n}" for n in range(most + 1)]
            results = await client.decide_all(texts, model="inbox")
            assert [row.index for row in results] == list(range(most + 1))
            assert sent == [("inbox@1", most), ("inbox@1", 1)]
            one = await client.decide(texts[-1:], adapter_id=ids[0])
            assert one.results[0].answers == results[-1].answers
            assert await client.decide_all([], QUESTIONS) == []
            frame = pd.DataFrame({"text": texts[:2]})
            assert len(await client.decide_frame(frame, QUESTIONS, cases=CASES)) == 2

    server.run(scenario)


def test_cases_of_more_inputs_than_a_request_takes_are_learned_once(tmp_path: Any) -> None:
    server = Server(tmp_path, max_inputs=2)
    with Embedded(server.app).client() as client:
        results = client.decide_all(["a", "b", "c"], QUESTIONS, cases=CASES, seed=3)
        made = client.create_adapter(questions=QUESTIONS, cases=CASES, seed=3)
        assert made.cache == "hit"
        assert results[2].answers == client.decide(["c"], adapter_id=made.id, seed=3).results[0].answers
    assert len(server.worker.adapted) == 1


# ---- frames --------------------------------------------------------------------------------------


def test_cases_are_columns_and_missing_values_cannot_be_told() -> None:
    frame = pd.DataFrame(
        {
            "text": ["a", "b", "c"],
            "urgent": [True, None, False],
            "team": ["it", np.nan, pd.NA],
            "anger": [2.0, np.nan, 0.0],
        }
    )
    assert cases_from_frame(frame, ["urgent", "team", "anger"]) == [
        ("a", {"urgent": True, "team": "it", "anger": 2}),
        ("b", {"urgent": None, "team": None, "anger": None}),
        ("c", {"urgent": False, "team": None, "anger": 0}),
    ]
    assert type(cases_from_frame(frame, ["anger"])[0][1]["anger"]) is int
    with pytest.raises(KeyError):
        cases_from_frame(frame, ["colour"])


def test_answers_are_columns_with_their_confidence_and_decision(client: Client) -> None:
    frame = pd.DataFrame({"mail": ["x", "y"]}, index=[7, 9])
    gates = {"team": {"min_confidence": 1}}
    table = client.decide_frame(frame, QUESTIONS, text="mail", cases=CASES, gates=gates)
    decided = client.decide(["x", "y"], QUESTIONS, cases=CASES, gates=gates).results
    assert list(table.index) == [7, 9]
    assert list(table.columns) == [
        f"{name}{part}" for name in ("urgent", "team", "anger") for part in ("", "_confidence", "_decision")
    ]
    for number, index in enumerate(frame.index):
        for name, answer in decided[number].answers.items():
            assert table.loc[index, name] == answer.answer
            assert table.loc[index, f"{name}_confidence"] == answer.confidence
            assert table.loc[index, f"{name}_decision"] == answer.decision
    assert list(client.decide_frame(frame[:0], QUESTIONS, text="mail").columns) == []
