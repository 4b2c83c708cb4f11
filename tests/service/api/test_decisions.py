"""OpenAI's Decisions: what a request means, what an answer says, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from service.api.decisions import wire
from service.api.decisions.rendering import decision
from service.api.decisions.requests import decision_body, input_text
from service.engine.requests import AdaptRequest
from tests.service.api.deciding import TOKENS, Recorder, decided_by_hand
from tests.service.conftest import Server

BASE = "fake-1b"
PREDICATE = {"type": "predicate", "name": "urgent", "instructions": "Is it urgent?"}
CHOICE = {
    "type": "choice",
    "name": "team",
    "instructions": "Which team?",
    "choices": [{"value": "true", "description": "A word."}, {"value": True}, {"value": "it"}],
}
SCORE = {
    "type": "score",
    "name": "anger",
    "instructions": "How angry?",
    "levels": [{"label": "calm"}, {"label": "cross", "description": "Loud."}, {"label": "furious"}],
}
BODY: dict[str, Any] = {"model": BASE, "input": "mail", "questions": [PREDICATE, CHOICE, SCORE]}


def parsed(**changes: Any) -> wire.DecisionRequest:
    return wire.DecisionRequest.model_validate_json(json.dumps({**BODY, **changes}))


# ---- the input -----------------------------------------------------------------------------------


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def call(name: str, call_id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "name": name, "call_id": call_id, "arguments": "{}", **fields}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("a text", "a text"),
        ([message("user", "a text")], "a text"),
        ([message("developer", "Be short.")], "developer: Be short."),
        (
            [message("system", "Rules."), {**message("user", "Hi"), "type": "message"},
             {**message("assistant", "Hello"), "phase": "final_answer"}],
            "system: Rules.\nuser: Hi\nassistant: Hello",
        ),
        (
            [message("user", [{"type": "input_text", "text": "See:", "prompt_cache_breakpoint": {"mode": "explicit"}},
                              {"type": "input_json", "data": {"total": 2.5, "paid": None}}])],
            "See:\ntotal: 2.5\npaid: null",
        ),
        (
            [message("user", "Go"),
             message("assistant", [{"type": "output_text", "text": "No."}, {"type": "refusal", "refusal": "Sorry."}])],
            "user: Go\nassistant: No.\nSorry.",
        ),
        (
            [message("user", "Weather?"),
             {**call("weather", "c1", arguments='{"city": "Oslo"}'), "id": "x", "status": "completed"},
             {"type": "function_call_output", "call_id": "c1", "output": "rain"},
             {"type": "custom_tool_call", "name": "shell", "call_id": "c2", "input": "ls"},
             {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "a.txt"}]}],
            'user: Weather?\ncall of weather: {"city": "Oslo"}\noutput of weather: rain\n'
            "call of shell: ls\noutput of shell: a.txt",
        ),
    ],
)  # fmt: skip
def test_messages_are_one_text(given: Any, text: str) -> None:
    assert input_text(parsed(input=given).input) == text
    assert decision_body(parsed(input=given)).inputs == (text,)


def test_parts_of_instructions_are_one_text() -> None:
    parts = [
        {"type": "input_text", "text": "Is it in the list?"},
        {"type": "input_json", "data": {"list": ["a"]}},
    ]
    (typed,) = decision_body(parsed(questions=[{**PREDICATE, "instructions": parts}])).questions
    assert typed.question.instruction == "Is it in the list?\nlist:\n  - a"


# ---- questions -----------------------------------------------------------------------------------


def test_questions_are_those_of_the_wire() -> None:
    urgent, team, anger = (typed.question for typed in decision_body(parsed()).questions)
    assert (urgent.name, urgent.kind, urgent.options) == ("urgent", "predicate", ("yes", "no"))
    assert (team.kind, team.options) == ("choice", ("true", "true (boolean)", "it"))
    assert team.descriptions == ("A word.", "", "")
    assert (anger.kind, anger.options, anger.descriptions) == (
        "score", ("calm", "cross", "furious"), ("", "Loud.", ""),
    )  # fmt: skip


# ---- answers -------------------------------------------------------------------------------------

PROBABILITIES = ((0.8, 0.2), (0.25, 0.5, 0.25), (0.125, 0.25, 0.625))


def answered(
    body: wire.DecisionRequest, probabilities: Sequence[Sequence[float]] = PROBABILITIES
) -> dict[str, Any]:
    asked = decision_body(body)
    decided = decided_by_hand(asked.request(BASE), probabilities)
    shown: dict[str, Any] = decision(decided, asked, body).model_dump()
    return shown


DETAILS = {
    "decision": "answer", "reason": None, "confidence_kind": "predictive", "answerable": 0.9, "typicality": 0.5,
    "mutual_information": 0.0, "standard_error": 0.0, "samples": 16, "learned": False,
    "prediction_id": None, "explored": None, "gate": None,
}  # fmt: skip


def test_answers_are_in_the_order_of_the_questions() -> None:
    urgent, team, anger = answered(parsed())["answers"]
    assert urgent == {"name": "urgent", "type": "predicate", "probability": 0.8, "abmll": DETAILS}
    assert team == {
        "name": "team", "type": "choice", "choice": True, "confidence": 0.5, "abmll": DETAILS,
        "probabilities": [{"value": "true", "probability": 0.25}, {"value": True, "probability": 0.5},
                          {"value": "it", "probability": 0.25}],
    }  # fmt: skip
    assert anger == {
        "name": "anger", "type": "score", "score": 1.5, "confidence": 0.625, "abmll": DETAILS,
        "probabilities": [{"value": 0, "label": "calm", "probability": 0.125},
                          {"value": 1, "label": "cross", "probability": 0.25},
                          {"value": 2, "label": "furious", "probability": 0.625}],
    }  # fmt: skip


def test_a_question_may_have_no_name_and_two_may_have_the_same() -> None:
    unnamed = {key: value for key, value in PREDICATE.items() if key != "name"}
    shown = answered(
        parsed(questions=[unnamed, {**unnamed, "name": None}, PREDICATE, PREDICATE]), [(0.5, 0.5)] * 4
    )
    assert [answer["name"] for answer in shown["answers"]] == [None, None, "urgent", "urgent"]


@pytest.mark.parametrize("refuse", [True, False])
def test_where_the_gate_abstains_the_answer_is_a_refusal_if_that_is_asked_for(refuse: bool) -> None:
    extras = {"gate": {"min_confidence": 0.6}, "refuse": refuse}
    urgent, team, anger = answered(parsed(abmll=extras))["answers"]
    assert [answer["type"] for answer in (urgent, anger)] == ["predicate", "score"]
    reason = {"decision": "abstain", "reason": "confidence_below_minimum"}
    assert team["abmll"] == {**DETAILS, **reason}
    if refuse:
        assert team == {"type": "refusal", "name": "team", "abmll": team["abmll"]}
    else:
        assert team["choice"] is True


def test_the_model_the_tokens_and_the_adapter_are_told() -> None:
    shown = answered(parsed(abmll={"cases": [{"input": "a", "answers": {"urgent": True}}], "seed": 4}))
    assert (shown["model"], shown["abmll"]["adapter_id"], shown["abmll"]["seed"]) == (
        "adp_made",
        "adp_made",
        4,
    )
    assert shown["usage"] == {
        "input_tokens": TOKENS, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": TOKENS,
    }  # fmt: skip
    beside = answered(parsed(abmll={"adapter_id": "adp_1"}))
    assert (beside["model"], beside["abmll"]["adapter_id"]) == ("adp_1", "adp_1")
    assert answered(parsed())["model"] == BASE


# ---- over HTTP -----------------------------------------------------------------------------------


def test_a_request_reaches_the_engine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    case = {"input": [message("user", "old mail")], "answers": {"team": True, "anger": None, "urgent": False}}
    answer = server.post(
        "/v1/decisions", {**BODY, "abmll": {"cases": [case], "adapt": {"effort": "instant"}}}
    )
    assert answer.status_code == 200, answer.text
    TypeAdapter(wire.Decision).validate_json(answer.content)
    (request,) = recorder.requests
    assert isinstance(request.adapter, AdaptRequest)
    assert [(row.input, row.output) for row in request.adapter.support] == [
        ("old mail", "no"), ("old mail", "true (boolean)"), ("old mail", "cannot tell"),
    ]  # fmt: skip


def choices(count: int) -> dict[str, Any]:
    return {**CHOICE, "choices": [{"value": f"v{n}"} for n in range(count)]}


def asked(*questions: Any, **changes: Any) -> dict[str, Any]:
    return {**BODY, "questions": list(questions), **changes}


def with_cases(*cases: Any) -> dict[str, Any]:
    return {**BODY, "abmll": {"cases": list(cases)}}


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,x"}
BAD: tuple[tuple[dict[str, Any], str | None, str], ...] = (
    (asked(), "questions", "at least 1 item"),
    (asked(*[PREDICATE] * 401), "questions", "401 questions; the limit is 400 (setting max_questions)"),
    (asked(choices(1)), "questions[0].choices", "at least 2 items"),
    (asked(PREDICATE, choices(256)), "questions[1].choices", "at most 255 items"),
    (asked({**CHOICE, "choices": [{"value": True}, {"value": True}]}), "questions[0].choices", "the value True"),
    (asked({**CHOICE, "choices": [{"value": "a"}, {"value": "a"}]}), "questions[0].choices", "the value 'a'"),
    (asked({**CHOICE, "choices": [{"value": "a"}, {"value": "a "}]}), "questions[0]", "white space"),
    (asked({**CHOICE, "choices": [{"value": "a"}, {"value": ""}]}), "questions[0]", "an option is empty"),
    (asked({**CHOICE, "choices": [{"value": "a"}, {"value": 1}]}), "questions[0].choices[1].value", "a text or a boolean"),
    (asked({**SCORE, "levels": [{"label": "a"}]}), "questions[0].levels", "at least 2 items"),
    (asked({**SCORE, "levels": [{"label": str(n)} for n in range(11)]}), "questions[0].levels", "at most 10 items"),
    (asked({**SCORE, "levels": [{"label": "a"}] * 2}), "questions[0].levels", "the label 'a'"),
    (asked({**SCORE, "levels": [{"label": "a"}, {"label": ""}]}), "questions[0]", "an option is empty"),
    (asked({**PREDICATE, "instructions": ""}), "questions[0].instructions", "the instructions are empty"),
    (asked({**PREDICATE, "instructions": " \n"}), "questions[0].instructions", "the instructions are empty"),
    (asked({**PREDICATE, "instructions": []}), "questions[0].instructions", "at least 1 item"),
    (asked({**PREDICATE, "instructions": [IMAGE]}), "questions[0].instructions[0]", "no images and no files"),
    (asked({"type": "box"}), "questions[0]", "a question of the type predicate, choice or score"),
    (asked({**PREDICATE, "nmae": "x"}), "questions[0].nmae", "not permitted"),
    ({**BODY, "input": []}, "input", "at least 1 item"),
    ({**BODY, "input": [message("user", [IMAGE])]}, "input[0].content[0]", "no images and no files"),
    ({**BODY, "input": [message("user", [{"type": "input_file", "file_id": "f"}])]}, "input[0].content[0]", "no files"),
    ({**BODY, "input": [message("tool", "x")]}, "input[0].role", "'user', 'developer'"),
    ({**BODY, "input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input", "no function_call"),
    ({**BODY, "input": [{"type": "reasoning"}]}, "input[0]", "a message, or an item of the type"),
    (with_cases(), "abmll.cases", "at least 1 item"),
    (with_cases({"input": "a", "answers": {}}), "abmll.cases[0].answers", "at least 1 item"),
    (with_cases({"input": "a", "answers": {"x": True}}), "abmll.cases[0].answers.x", "no question 'x'"),
    (with_cases({"input": "a", "answers": {"anger": 3}}), "abmll.cases[0].answers.anger", "it has 0, 1, 2"),
    (with_cases({"input": "a", "answers": {"anger": 1.0}}), "abmll.cases[0].answers.anger", "the index of a level"),
    ({**BODY, "abmll": {"adapt": {}}}, "abmll.adapt", "adapt applies to cases"),
    ({**BODY, "abmll": {"gate": {"min_confidence": 2}}}, "abmll.gate.min_confidence", "less than or equal to 1"),
    ({**BODY, "model": "adp_1", "abmll": {"adapter_id": "adp_2"}}, "abmll.adapter_id", "model names an adapter already"),
    ({**BODY, "metadata": {}}, "metadata", "not permitted"),
)  # fmt: skip


@pytest.mark.parametrize(("body", "param", "message"), BAD)
def test_bad_input_gets_openais_error_before_any_work(
    server: Server, body: dict[str, Any], param: str | None, message: str
) -> None:
    refused = server.post("/v1/decisions", body)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]
    assert server.worker.adapted == server.worker.predicted == []


def deep(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (deep(65), "invalid_request", "nested deeper than 64 levels"),
        (deep(10_000), "malformed_json", "the body is nested too deep: at most 200"),
        ('{"a":NaN}', "malformed_json", "the body is not JSON"),
        ('{"a":1e400}', "invalid_request", "not finite"),
    ],
)
def test_structures_that_no_text_can_show_are_refused(
    server: Server, data: str, code: str, message: str
) -> None:
    content = json.dumps({**BODY, "input": [message_of_json()]}).replace('"DATA"', data)

    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/json"}
        refused = await client.post("/v1/decisions", content=content, headers=headers)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == code
        assert message in refused.json()["error"]["message"]

    server.run(scenario)


def message_of_json() -> dict[str, Any]:
    return message("user", [{"type": "input_json", "data": "DATA"}])
