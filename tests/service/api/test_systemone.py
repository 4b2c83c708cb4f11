"""TypeSafe's System One: what a request means, what an answer says, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from abmll.text.questions import Question
from service.api.systemone import wire
from service.api.systemone.errors import ErrorResponse
from service.api.systemone.rendering import system_one_response
from service.api.systemone.requests import decision_body
from service.engine.requests import AdaptRequest
from tests.service.api.deciding import TOKENS, Recorder, decided_by_hand
from tests.service.conftest import Server

BASE = "fake-1b"
NOUL = {"type": "noul", "instructions": "Is it urgent?"}
CHOICE = {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "Payments.", "it": None}}
SCORE = {
    "type": "score",
    "instructions": "How angry?",
    "criteria": ["calm", {"tone": "cross"}, ["loud", "rude"]],
}
QUESTIONS = {"urgent": NOUL, "team": CHOICE, "anger": SCORE}
BODY: dict[str, Any] = {"model": BASE, "state": {"subject": "Bill", "pages": 2}, "questions": QUESTIONS}


def parsed(**changes: Any) -> wire.SystemOneRequest:
    return wire.SystemOneRequest.model_validate_json(json.dumps({**BODY, **changes}))


def asked(question: Any) -> Question:
    (typed,) = decision_body(parsed(questions={"q": question})).questions
    return typed.question


# ---- requests ------------------------------------------------------------------------------------


def test_the_state_is_one_text() -> None:
    assert decision_body(parsed()).inputs == ("subject: Bill\npages: 2",)
    assert decision_body(parsed(state="as it is")).inputs == ("as it is",)
    assert decision_body(parsed(state=[1, "b"])).inputs == ("- 1\n- b",)


@pytest.mark.parametrize(
    ("question", "instruction", "options", "descriptions"),
    [
        (NOUL, "Is it urgent?", ("yes", "no"), ()),
        ({**NOUL, "criteria": None}, "Is it urgent?", ("yes", "no"), ()),
        ({**NOUL, "criteria": {"true": {"when": "today"}}}, "Is it urgent?", ("yes", "no"), ("when: today", "")),
        ({"type": "noul", "criteria": {"true": "Spam.", "false": None}}, "yes: Spam.", ("yes", "no"), ("Spam.", "")),
        (
            {"type": "noul", "criteria": {"true": "Spam.", "false": "A letter."}},
            "yes: Spam.\nno: A letter.", ("yes", "no"), ("Spam.", "A letter."),
        ),
        ({**NOUL, "instructions": {"task": "Find spam."}}, "task: Find spam.", ("yes", "no"), ()),
        (CHOICE, "Which team?", ("billing", "it"), ("Payments.", "")),
        (
            {"type": "choice", "criteria": {"a": None, "b": None}},
            "Choose the option that fits.", ("a", "b"), (),
        ),
        (SCORE, "How angry?", ("calm", "tone: cross", "- loud\n- rude"), ()),
        ({"type": "score", "criteria": ["low", "high"]}, "Choose the level that fits.", ("low", "high"), ()),
    ],
)  # fmt: skip
def test_questions_are_those_of_the_wire(
    question: Any, instruction: str, options: tuple[str, ...], descriptions: tuple[str, ...]
) -> None:
    found = asked(question)
    assert (found.name, found.instruction, found.options) == ("q", instruction, options)
    assert found.descriptions == descriptions


# ---- answers -------------------------------------------------------------------------------------


def test_answers_have_the_names_of_their_questions() -> None:
    body = parsed(abmll={"gate": {"min_confidence": 0.6}, "seed": 9})
    wanted = decision_body(body)
    rows = [(0.25, 0.75), (0.5, 0.5), (0.125, 0.25, 0.625)]
    decided = decided_by_hand(wanted.request(BASE), rows, learned=True, answerable=None)
    shown = system_one_response(decided, wanted, body).model_dump()
    assert list(shown["answers"]) == ["urgent", "team", "anger"]
    details = {name: answer.pop("abmll") for name, answer in shown["answers"].items()}
    assert shown["answers"] == {
        "urgent": {"type": "noul", "noul": 0.25},
        "team": {
            "type": "choice", "choice": "billing", "confidence": 0.5, "probabilities": {"billing": 0.5, "it": 0.5},
        },
        "anger": {
            "type": "score", "score": 1.5, "confidence": 0.625,
            "legend": {"0": "calm", "1": {"tone": "cross"}, "2": ["loud", "rude"]},
            "probabilities": {"0": 0.125, "1": 0.25, "2": 0.625},
        },
    }  # fmt: skip
    assert details["urgent"] == {
        "decision": "answer", "reason": None, "confidence_kind": "predictive", "answerable": None, "typicality": 0.5,
        "mutual_information": 0.0, "standard_error": 0.0, "samples": 16, "learned": True,
        "prediction_id": None, "explored": None, "gate": None,
    }  # fmt: skip
    assert (details["team"]["decision"], details["team"]["reason"]) == ("abstain", "confidence_below_minimum")
    assert (shown["model"], shown["usage"]) == (BASE, {"input_tokens": TOKENS, "output_tokens": 0})
    assert (shown["abmll"]["adapter_id"], shown["abmll"]["seed"]) == (None, 9)


def test_a_request_reaches_the_engine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    cases = [{"state": {"subject": "Old"}, "answers": {"team": "it", "anger": 2, "urgent": None}}]
    answer = server.post("/v1/systemone", {**BODY, "abmll": {"cases": cases}})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-typesafe-request-id"] == answer.headers["x-request-id"]
    TypeAdapter(wire.SystemOneResponse).validate_json(answer.content)
    (request,) = recorder.requests
    assert isinstance(request.adapter, AdaptRequest)
    assert [(row.input, row.output) for row in request.adapter.support] == [
        ("subject: Old", "cannot tell"), ("subject: Old", "it"), ("subject: Old", "- loud\n- rude"),
    ]  # fmt: skip


# ---- errors --------------------------------------------------------------------------------------


def one(question: Any, **changes: Any) -> dict[str, Any]:
    return {**BODY, "questions": {"a.b": question}, **changes}


def with_case(answers: Any) -> dict[str, Any]:
    return {**BODY, "abmll": {"cases": [{"state": "x", "answers": answers}]}}


AT = ["body", "questions", "a.b"]
CASE = ["body", "abmll", "cases", 0]
BAD: tuple[tuple[dict[str, Any], list[str | int], str, str], ...] = (
    ({"model": BASE, "questions": QUESTIONS}, ["body", "state"], "missing", "Field required"),
    ({**BODY, "questions": {}}, ["body", "questions"], "too_short", "at least 1 item"),
    ({**BODY, "questions": {str(n): NOUL for n in range(401)}}, ["body", "questions"], "limit_exceeded",
     "401 questions; the limit is 400 (setting max_questions)"),
    ({**BODY, "state": 5}, ["body", "state"], "value_error", "a text, an object or a list"),
    ({**BODY, "state": None}, ["body", "state"], "value_error", "a text, an object or a list"),
    ({**BODY, "assets": {"a": {"type": "image", "data_base64": "x"}}}, ["body", "assets"], "value_error", "text only"),
    (one({"type": "box", "instructions": "The dog"}), AT, "union_tag_invalid", "'noul', 'choice', 'score'"),
    (one({"type": "noul"}), [*AT, "noul"], "value_error", "neither instructions nor criteria"),
    (one({"type": "noul", "criteria": {"true": None}}), [*AT, "noul"], "value_error", "neither instructions"),
    (one({**NOUL, "instructions": " "}), [*AT, "noul", "instructions"], "value_error", "it is empty"),
    (one({**NOUL, "instructions": {}}), [*AT, "noul", "instructions"], "value_error", "it is empty"),
    (one({**NOUL, "criteria": {"ture": "x"}}), [*AT, "noul", "criteria", "ture"], "extra_forbidden", "not permitted"),
    (one({**CHOICE, "criteria": {"a": None}}), [*AT, "choice", "criteria"], "too_short", "at least 2 items"),
    (one({**CHOICE, "criteria": {f"v{n}": None for n in range(256)}}), [*AT, "choice", "criteria"], "too_long",
     "at most 255 items"),
    (one({**CHOICE, "criteria": {"a": None, "a ": None}}), [*AT, "choice"], "invalid_options",
     "white space"),
    (one({**CHOICE, "criteria": {"a": None, "": None}}), [*AT, "choice"], "invalid_options", "is empty"),
    (one({"type": "choice"}), [*AT, "choice", "criteria"], "missing", "Field required"),
    (one({**SCORE, "criteria": ["one"]}), [*AT, "score", "criteria"], "too_short", "at least 2 items"),
    (one({**SCORE, "criteria": ["a", ""]}), [*AT, "score", "criteria", 1], "value_error", "it is empty"),
    (one({**SCORE, "criteria": ["k: 1", {"k": 1}]}), [*AT, "score"], "invalid_options",
     "options are repeated"),
    (with_case({}), [*CASE, "answers"], "too_short", "at least 1 item"),
    (with_case({"nobody": True}), [*CASE, "answers", "nobody"], "invalid_support", "no question 'nobody'"),
    (with_case({"team": "sales"}), [*CASE, "answers", "team"], "invalid_options", "it has 'billing', 'it'"),
    ({**BODY, "abmll": {"refuse": True}}, ["body", "abmll", "refuse"], "extra_forbidden", "not permitted"),
    ({**BODY, "model": "adp_1", "abmll": {"adapter_id": "adp_2"}}, ["body", "abmll", "adapter_id"], "invalid_request",
     "model names an adapter already"),
)  # fmt: skip


@pytest.mark.parametrize(("body", "loc", "kind", "message"), BAD)
def test_bad_input_gets_fastapis_error_before_any_work(
    server: Server, body: dict[str, Any], loc: Any, kind: str, message: str
) -> None:
    refused = server.post("/v1/systemone", body)
    assert refused.status_code == 422, refused.text
    TypeAdapter(ErrorResponse).validate_json(refused.content)
    (error,) = refused.json()["detail"]
    assert (error["loc"], error["type"]) == (loc, kind)
    assert message in error["msg"]
    assert server.worker.adapted == server.worker.predicted == []


def test_all_wrong_fields_are_named_with_short_values(server: Server) -> None:
    long = {"type": "score", "instructions": "x" * 2000, "criteria": []}
    refused = server.post("/v1/systemone", {**BODY, "questions": {"a": {**NOUL, "x": 1}, "b": long, "c": {}}})
    a, b, c = refused.json()["detail"]
    assert (a["loc"][-1], a["input"]) == ("x", 1)
    assert (b["loc"][-1], b["input"]) == ("criteria", [])
    assert (c["loc"][-1], c["input"]) == ("c", {})
    missing = server_with(server, {"questions": {"a": long}, "state": "x"})
    assert missing[0]["loc"] == ["body", "model"]
    assert "input" not in missing[0]


def server_with(server: Server, body: Any) -> Any:
    return Server(server.settings.data_dir / "other").post("/v1/systemone", body).json()["detail"]


def deep(depth: int) -> str:
    return "[" * depth + "1" + "]" * depth


@pytest.mark.parametrize(
    ("state", "status", "loc", "message"),
    [
        (deep(65), 422, ["body", "state"], "nested deeper than 64 levels"),
        (deep(10_000), 400, None, "the body is nested too deep: at most 200"),
        ("NaN", 400, None, "the body is not JSON"),
        ("[1e400]", 422, ["body", "state"], "not finite"),
    ],
)
def test_states_that_no_text_can_show_are_refused(
    server: Server, state: str, status: int, loc: Any, message: str
) -> None:
    content = json.dumps({**BODY, "state": "STATE"}).replace('"STATE"', state)

    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/json"}
        refused = await client.post("/v1/systemone", content=content, headers=headers)
        assert refused.status_code == status
        detail = refused.json()["detail"]
        assert message in (detail if loc is None else detail[0]["msg"])
        assert loc is None or detail[0]["loc"] == loc

    server.run(scenario)


def test_an_alias_of_the_base_model_is_asked_and_learns_as_the_base_model(tmp_path: Path) -> None:
    cases = [{"state": "a", "answers": {"team": "it"}}, {"state": "b", "answers": {"team": "billing"}}]
    for extras in ({}, {"abmll": {"cases": cases}}):
        named, asked = (
            Server(tmp_path, model_aliases="jev-latest").post(
                "/v1/systemone", {**BODY, **extras, "model": model}
            )
            for model in (BASE, "jev-latest")
        )
        assert (named.status_code, named.json()["answers"]) == (200, asked.json()["answers"])
        assert asked.json()["model"] == named.json()["model"] != "jev-latest"


def test_models_that_are_not_there_are_named(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await client.post("/v1/systemone", json={**BODY, "model": "jev-latest"})
        assert refused.status_code == 404
        message = refused.json()["detail"]
        assert message.startswith("there is no model 'jev-latest': a model is 'fake-1b'")
        decision = {
            "model": "jev-latest",
            "input": "x",
            "questions": [{"type": "predicate", "instructions": "?"}],
        }
        error = (await client.post("/v1/decisions", json=decision)).json()["error"]
        assert (error["message"], error["param"], error["code"]) == (message, "model", "model_not_found")
        decision |= {"model": BASE, "abmll": {"adapter_id": "adp_0"}}
        error = (await client.post("/v1/decisions", json=decision)).json()["error"]
        assert (error["message"], error["param"]) == ("there is no adapter 'adp_0'", "abmll.adapter_id")

    server.run(scenario)


def test_a_name_is_followed_and_the_version_that_answered_is_told(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        cases = [{"state": "a", "answers": {"team": "it"}}, {"state": "b", "answers": {"team": "billing"}}]
        made = await client.post("/v1/systemone", json={**BODY, "abmll": {"cases": cases}})
        adapter_id = made.json()["abmll"]["adapter_id"]
        assert made.json()["model"] == adapter_id
        (await client.put("/v1/names/tickets", json={"adapter_id": adapter_id})).raise_for_status()
        for model in ("tickets", "tickets@1"):
            named = (
                (await client.post("/v1/systemone", json={**BODY, "model": model})).raise_for_status().json()
            )
            assert (named["model"], named["abmll"]["adapter_id"]) == ("tickets@1", adapter_id)
            assert named["answers"] == made.json()["answers"]
        (listed,) = [
            row for row in (await client.get("/v1/models")).json()["models"] if row["name"] == "tickets"
        ]
        assert listed["description"] == f"Name of the adapter {adapter_id}."

    server.run(scenario)


def test_other_errors_are_a_text(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for method, path, headers, status in (
            ("POST", "/v1/systemone", {"content-type": "multipart/form-data"}, 415),
            ("POST", "/v1/systemone/", {}, 404),
            ("GET", "/v1/systemone", {}, 405),
        ):
            refused = await client.request(method, path, content=b"{}", headers=headers)
            assert refused.status_code == status
            assert isinstance(refused.json()["detail"], str)
            assert refused.headers["x-typesafe-request-id"]

    server.run(scenario)
