"""`POST /v1/decide`, and adapters of questions: several inputs, the adapter's own questions, gates
by question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import schemas
from service.api.native.typed_answers import question_object
from service.api.typed_questions import typed_question
from service.schemas import demo
from tests.service.conftest import Server

BASE = "fake-1b"
URGENT = {"type": "predicate", "name": "urgent", "instructions": "Is it urgent?"}
TEAM = {
    "type": "choice",
    "name": "team",
    "instructions": [{"type": "input_text", "text": "Which team?"}],
    "choices": [{"value": "billing", "description": "Payments."}, {"value": True}, {"value": "it"}],
}
ANGER = {
    "type": "score",
    "name": "anger",
    "instructions": "How angry?",
    "levels": [{"label": "calm"}, {"label": "cross", "description": "Loud."}, {"label": "furious"}],
}
QUESTIONS = [URGENT, TEAM, ANGER]
CASES = [
    {"input": "the bill is wrong", "answers": {"urgent": True, "team": "billing"}},
    {"input": "no hurry", "answers": {"urgent": False, "team": None}},
    {"input": "it burns", "answers": {"urgent": None, "team": True}},
]
ADAPTER = {"questions": QUESTIONS, "cases": CASES}


def answers(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    schemas.DecideResponse.model_validate_json(response.content)
    return [row["answers"] for row in response.json()["results"]]


async def create(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    created = await client.post("/v1/adapters", json={**ADAPTER, **changes})
    assert created.status_code in {200, 201}, created.text
    found: dict[str, Any] = created.json()
    return found


async def decide(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/decide", json={"inputs": ["a mail", "another"], **body})


# ---- adapters of questions -----------------------------------------------------------------------


def test_an_adapter_has_questions_of_its_own_with_the_numbers_of_their_cases(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        created = await create(client)
        shown = (await client.get(f"/v1/adapters/{created['id']}")).json()
        assert created["questions"] == shown["questions"]
        assert [
            (row["question"]["name"], row["cases"], row["cannot_tell"]) for row in shown["questions"]
        ] == [
            ("urgent", 3, 1), ("team", 3, 1), ("anger", 0, 0),
        ]  # fmt: skip
        assert shown["support"]["n"] == 6
        assert shown["warnings"] == ["no case answers 'team' with 'it'"]
        again = await create(client, questions=[row["question"] for row in shown["questions"]])
        assert (again["id"], again["cache"]) == (created["id"], "hit")

    server.run(scenario)
    (job,) = server.worker.adapted
    assert len(job.examples) == 6


def test_an_adapter_made_from_examples_has_none(server: Server) -> None:
    body = {
        "support": [{"input": "a", "output": "yes"}, {"input": "b", "output": "no"}],
        "options": ["yes", "no"],
    }
    assert "questions" not in server.post("/v1/adapters", body).json()


def test_other_names_are_another_adapter_that_answers_alike(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        first = await create(client)
        renamed = [{**question, "name": question["name"].upper()} for question in QUESTIONS]
        cases = [
            {**case, "answers": {name.upper(): value for name, value in case["answers"].items()}}
            for case in CASES
        ]
        second = await create(client, questions=renamed, cases=cases)
        assert first["id"] != second["id"]
        assert first["diagnostics"] == second["diagnostics"]

    server.run(scenario)
    one, other = server.worker.adapted
    assert (one.examples, one.settings, one.seed) == (other.examples, other.settings, other.seed)


@pytest.mark.parametrize(
    "question",
    [
        URGENT,
        {**URGENT, "criteria": {"yes": "Today.", "no": ""}},
        {**TEAM, "instructions": "Which team?"},
        ANGER,
    ],
)
def test_a_question_is_shown_as_it_was_given(question: Mapping[str, Any]) -> None:
    body = schemas.DecideRequest.model_validate({"questions": [question], "inputs": ["x"]})
    (given,) = body.questions or ()
    assert not isinstance(given, str)
    assert question_object(typed_question(given)).model_dump(exclude_none=True) == question


# ---- deciding ------------------------------------------------------------------------------------


def test_every_question_about_every_input_is_answered(server: Server) -> None:
    response = server.post("/v1/decide", {"questions": QUESTIONS, "inputs": ["a", "b"], "samples": 4})
    rows = answers(response)
    assert (response.json()["model"], response.json()["adapter_id"]) == (BASE, None)
    assert [list(row) for row in rows] == [["urgent", "team", "anger"]] * 2
    for row in rows:
        for answer in row.values():
            probabilities = [value["probability"] for value in answer["probabilities"]]
            top = probabilities.index(max(probabilities))
            assert answer["answer"] is answer["probabilities"][top]["value"] or (
                answer["answer"] == answer["probabilities"][top]["value"]
            )
            assert answer["confidence"] == pytest.approx(max(probabilities))
            assert answer["margin"] == pytest.approx(max(probabilities) - sorted(probabilities)[-2])
            assert sum(probabilities) == pytest.approx(1)
            assert (answer["samples"], answer["learned"], answer["decision"]) == (4, False, "answer")
            assert 0 < answer["answerable"] < 1
        assert [value["value"] for value in row["urgent"]["probabilities"]] == [True, False]
        assert [value["value"] for value in row["team"]["probabilities"]] == ["billing", True, "it"]
        levels = row["anger"]["probabilities"]
        assert [value["value"] for value in levels] == ["calm", "cross", "furious"]
        expected = sum(index * value["probability"] for index, value in enumerate(levels))
        assert row["anger"]["expected_level"] == pytest.approx(expected)
        assert row["team"]["expected_level"] is None


def test_the_same_request_at_openais_wire_gives_the_same_probabilities(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        (row,) = answers(await decide(client, questions=QUESTIONS, inputs=["a mail"]))
        body = {"model": BASE, "input": "a mail", "questions": QUESTIONS}
        urgent, team, anger = (await client.post("/v1/decisions", json=body)).json()["answers"]
        assert row["urgent"]["probabilities"][0]["probability"] == urgent["probability"]
        assert row["team"]["probabilities"] == team["probabilities"]
        assert row["anger"]["expected_level"] == anger["score"]

    server.run(scenario)


def test_an_adapters_own_questions_are_asked_by_name_or_all_of_them(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        made = await create(client)
        new = {**ANGER, "name": "new", "instructions": "How glad?"}
        whole = answers(await decide(client, adapter_id=made["id"], questions=QUESTIONS))
        assert answers(await decide(client, adapter_id=made["id"])) == whole
        assert answers(await decide(client, model=made["id"])) == whole
        some = answers(await decide(client, model=made["id"], questions=["anger", new, "urgent"]))
        assert [list(row) for row in some] == [["anger", "new", "urgent"]] * 2
        assert [row["urgent"] for row in some] == [row["urgent"] for row in whole]
        assert [whole[0][name]["learned"] for name in whole[0]] == [True, True, False]
        assert not some[0]["new"]["learned"]

    server.run(scenario)


def test_inline_cases_are_the_adapter_that_is_made_from_them(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        learned = [URGENT, TEAM]
        inline = await decide(client, questions=learned, cases=CASES, adapt={"steps": 2})
        made = await create(client, questions=learned, adapt={"steps": 2})
        assert (inline.json()["adapter_id"], made["cache"]) == (made["id"], "hit")
        assert answers(await decide(client, model=made["id"])) == answers(inline)

    server.run(scenario)


def test_a_name_brings_the_questions_of_the_version_that_answers(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        first = await create(client)
        second = await create(client, questions=[URGENT, TEAM])
        for made in (first, second):
            await client.put("/v1/names/inbox", json={"adapter_id": made["id"]})
        now, before = await decide(client, model="inbox"), await decide(client, model="inbox@1")
        assert (now.json()["model"], list(answers(now)[0])) == ("inbox@2", ["urgent", "team"])
        assert (before.json()["model"], list(answers(before)[0])) == ("inbox@1", ["urgent", "team", "anger"])
        assert before.json()["adapter_id"] == first["id"]

    server.run(scenario)


def test_adapters_of_the_wires_have_their_questions_too(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        question = {"type": "score", "criteria": [f"level {n}" for n in range(12)]}
        cases = [{"state": f"mail {n}", "answers": {"how much?": n}} for n in range(2)]
        body = {"model": BASE, "state": "x", "questions": {"how much?": question}, "abmll": {"cases": cases}}
        adapter = (await client.post("/v1/systemone", json=body)).json()["abmll"]["adapter_id"]
        (row,) = (await client.get(f"/v1/adapters/{adapter}")).json()["questions"]
        assert (len(row["question"]["levels"]), row["cases"]) == (12, 2)
        (found,) = answers(await decide(client, model=adapter, inputs=["x"]))
        assert list(found) == ["how much?"]

    server.run(scenario)


def test_each_question_is_decided_by_its_own_gate(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        rows = answers(
            await decide(
                client,
                questions=QUESTIONS,
                gate={"min_confidence": 1},
                gates={"team": {"min_confidence": 0}, "anger": {"min_typicality": 0.5}},
            )
        )
        reasons = [row["reason"] for row in rows[0].values()]
        assert reasons == ["confidence_below_minimum", None, "typicality_below_minimum"]

    server.run(scenario)


def test_a_choice_of_255_values_is_answered(server: Server) -> None:
    wide = {**TEAM, "choices": [{"value": f"value {n}"} for n in range(255)]}
    (row,) = answers(server.post("/v1/decide", {"questions": [wide], "inputs": ["x"], "samples": 0}))
    assert len(row["team"]["probabilities"]) == 255


def test_the_demos_request_is_answered(server: Server) -> None:
    assert len(answers(server.post("/v1/decide", demo.decide_body()))[0]) == 3


def test_an_adapter_of_questions_is_read_from_the_disk_as_it_was(tmp_path: Path) -> None:
    found: list[Any] = []

    async def play(server: Server, work: Any) -> None:
        async with server.running() as client:
            found.append(await work(client))

    asyncio.run(play(Server(tmp_path), create))
    made = found[0]
    asyncio.run(play(Server(tmp_path), lambda client: client.get(f"/v1/adapters/{made['id']}")))
    assert found[1].json() == {
        name: value for name, value in made.items() if name not in {"cache", "timings", "request_id"}
    }


# ---- what is refused -----------------------------------------------------------------------------

SUPPORT = [{"input": "a", "output": "yes"}, {"input": "b", "output": "no"}]


def case(**answers: Any) -> dict[str, Any]:
    return {**ADAPTER, "cases": [CASES[0], {"input": "x", "answers": answers}]}


BAD_ADAPTERS = {
    "nothing to learn from": ({}, None, "exactly one of support, and cases"),
    "both": ({**ADAPTER, "support": SUPPORT}, None, "exactly one of support, and cases"),
    "cases without questions": ({"cases": CASES}, None, "questions and cases belong together"),
    "questions beside a support": ({"support": SUPPORT, "questions": QUESTIONS}, None, "belong together"),
    "options of questions": ({**ADAPTER, "options": ["a", "b"]}, None, "each question has its own"),
    "no cases": ({**ADAPTER, "cases": []}, "cases", "at least 1 item"),
    "no questions": ({**ADAPTER, "questions": []}, "questions", "at least 1 item"),
    "no answers": (case(), "cases[1].answers", "at least 1 item"),
    "an unknown question": (case(colour="red"), "cases[1].answers.colour", "there is no question 'colour'"),
    "no option": (case(team="sales"), "cases[1].answers.team", "'sales' is no answer to this question: it has"),
    "a text for a boolean": (case(urgent="yes"), "cases[1].answers.urgent", "it has True, False"),
    "a level too many": (case(anger=3), "cases[1].answers.anger", "it has 0, 1, 2"),
    "a number": (case(anger=0.5), "cases[1].answers.anger", "the index of a level"),
    "one class": (
        {"questions": [URGENT], "cases": [{"input": text, "answers": {"urgent": True}} for text in "xy"]},
        "cases", "two classes",
    ),
    "a question without a name": (
        {**ADAPTER, "questions": [*QUESTIONS, {**URGENT, "name": None}]}, "questions[3].name", "needs a name",
    ),
    "two of one name": ({**ADAPTER, "questions": [*QUESTIONS, URGENT]}, "questions[3].name", "the name 'urgent'"),
    "two of one text": (
        {**ADAPTER, "questions": [*QUESTIONS, {**URGENT, "name": "now"}]}, "questions[3]", "could not tell them apart",
    ),
    "an empty instruction": (
        {**ADAPTER, "questions": [*QUESTIONS, {**URGENT, "name": "x", "instructions": " "}]},
        "questions[3].instructions", "are empty",
    ),
    "one level": (
        {**ADAPTER, "questions": [{**ANGER, "levels": [{"label": "a"}]}]}, "questions[0].levels", "at least 2 items",
    ),
    "options that look alike": (
        {**ADAPTER, "questions": [*QUESTIONS, {**TEAM, "name": "x", "choices": [{"value": "a"}, {"value": "a "}]}]},
        "questions[3]", "differ only by white space",
    ),
    "256 choices": (
        {**ADAPTER, "questions": [{**TEAM, "choices": [{"value": str(n)} for n in range(256)]}]},
        "questions[0].choices", "at most 255 items",
    ),
    "another base": ({**ADAPTER, "model": "other"}, "model", "this server serves"),
    "a text too long": ({**ADAPTER, "cases": [*CASES, {"input": "x" * 301, "answers": {"anger": 0}}]},
                        "cases[3].answers.anger", "301 characters"),
    "too many answers": ({**ADAPTER, "cases": CASES * 3}, "cases", "18 examples; the limit is 9"),
    "too much for the context": (
        {**ADAPTER, "cases": [*CASES, {"input": "x" * 280, "answers": {"anger": 0}}]}, "cases[3].input", "at most 256",
    ),
}  # fmt: skip


def asked(**changes: Any) -> dict[str, Any]:
    return {"questions": QUESTIONS, "inputs": ["x"], **changes}


BAD_REQUESTS = {
    "no inputs": (asked(inputs=[]), "inputs", "at least 1 item"),
    "a row": (asked(inputs=[{"input": "x"}]), "inputs[0]", "valid string"),
    "no questions": ({"inputs": ["x"]}, "questions", "the base model has no questions of its own"),
    "a name of no adapter": (asked(questions=["urgent"]), "questions", "give whole questions"),
    "an empty list": (asked(questions=[]), "questions", "at least 1 item"),
    "a question of no type": (asked(questions=[{"type": "box"}]), "questions[0]", "or the name of one of the adapter's"),
    "cases without questions": ({"inputs": ["x"], "cases": CASES}, None, "cases need questions"),
    "a case of nothing": (
        asked(cases=[{"input": "x", "answers": {"y": 1}}]), "cases[0].answers.y", "there is no question 'y'",
    ),
    "a repeated question": (asked(questions=[URGENT, URGENT]), "questions[1].name", "the name 'urgent'"),
    "an adapter that is not there": ({"inputs": ["x"], "adapter_id": "adp_1"}, "adapter_id", "no adapter"),
    "a name that is not there": ({"inputs": ["x"], "model": "inbox"}, "model", "there is no model 'inbox'"),
    "adapt without cases": (asked(adapt={"steps": 2}), "adapt", "adapt applies to cases"),
    "a gate of no question": (asked(gates={"y": {}}), "gates.y", "there is no question 'y'"),
    "a certified gate of one": (asked(gates={"team": {"target_error": 0.1}}), "gates.team", "give them as gate"),
    "a certified gate of the base": (asked(gate={"target_error": 0.1}), "gate", "need an adapter"),
    "a gate on free text": (asked(gate={"max_semantic_entropy": 1}), "gate", "free text"),
    "calibrated of the base": (asked(confidence="calibrated"), "confidence", "no calibrated confidence"),
    "too many inputs": (asked(inputs=["x"] * 4), "inputs", "4 inputs; the limit is 3"),
    "a long input": (asked(inputs=["x", "y" * 301]), "inputs[1]", "301 characters"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [("/v1/adapters", *row) for row in BAD_ADAPTERS.values()]
    + [("/v1/decide", *row) for row in BAD_REQUESTS.values()],
    ids=[*BAD_ADAPTERS, *BAD_REQUESTS],
)
def test_bad_questions_and_cases_are_refused_at_their_place_before_any_work(
    tmp_path: Path, path: str, body: dict[str, Any], param: str | None, message: str
) -> None:
    server = Server(tmp_path, max_inputs=3, max_text_chars=300, max_support=9)
    refused = server.post(path, body)
    assert refused.status_code in {404, 422}, refused.text
    error = refused.json()["error"]
    assert (error.get("param"), message in error["message"]) == (param, True), error
    assert server.worker.adapted == server.worker.predicted == []


def test_an_adapter_without_questions_or_without_this_one_is_named(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        plain = await client.post("/v1/adapters", json={"support": SUPPORT, "options": ["yes", "no"]})
        for body in ({}, {"questions": ["urgent"]}):
            refused = (await decide(client, model=plain.json()["id"], **body)).json()["error"]
            assert (refused["param"], "was not made from cases" in refused["message"]) == ("questions", True)
        made = await create(client)
        refused = (await decide(client, model=made["id"], questions=["urgent", "colour"])).json()["error"]
        assert refused["param"] == "questions[1]"
        assert "no question 'colour': it has 'urgent', 'team', 'anger'" in refused["message"]

    server.run(scenario)


def test_predicting_with_an_adapter_of_one_question_asks_that_question(server: Server) -> None:
    """`/v1/predict` without options asks what the cases were asked, and "cannot tell" is no answer."""

    async def scenario(client: httpx.AsyncClient) -> None:
        cases = [{"input": c["input"], "answers": {"urgent": c["answers"]["urgent"]}} for c in CASES]
        one = await create(client, questions=[URGENT], cases=cases)
        asked = {"adapter_id": one["id"], "inputs": ["a mail", "another"]}
        predicted = (await client.post("/v1/predict", json=asked)).raise_for_status().json()["predictions"]
        decided = answers(await decide(client, adapter_id=one["id"]))
        for row, same in zip(predicted, decided, strict=True):
            assert {option["option"] for option in row["distribution"]} == {"yes", "no"}
            assert row["confidence"] == same["urgent"]["confidence"]
            assert row["uncertainty"]["answerable"] == same["urgent"]["answerable"]

    server.run(scenario)
