"""Options are blind to one another, and questions too: order, names and company change no answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.service.conftest import Server

BASE = "fake-1b"
VALUES = ["billing", "delivery", True, "other"]
LEVELS = ["calm", "cross", "furious"]
Answers = dict[str, dict[Any, float]]
Wire = Callable[..., Awaitable[Answers]]


def by_key(value: Any) -> str:
    return f"{type(value).__name__} {value}"


async def by_decisions(
    client: httpx.AsyncClient, names: dict[str, str], values: list[Any], levels: list[str]
) -> Answers:
    """The probabilities by the kind of question, in the order of `names`, which are by kind."""
    questions = {
        "predicate": {"instructions": "Is it urgent?"},
        "choice": {"instructions": "Which team?", "choices": [{"value": value} for value in values]},
        "score": {"instructions": "How angry?", "levels": [{"label": level} for level in levels]},
    }
    wanted = [{"type": kind, "name": name, **questions[kind]} for kind, name in names.items()]
    answer = await client.post("/v1/decisions", json={"model": BASE, "input": "mail", "questions": wanted})
    found = {row["type"]: row for row in answer.raise_for_status().json()["answers"]}
    assert [row["name"] for row in found.values()] == list(names.values())
    shown: Answers = {}
    for kind, row in found.items():
        if kind == "predicate":
            shown[kind] = {"yes": row["probability"]}
        else:
            key = "value" if kind == "choice" else "label"
            shown[kind] = {by_key(p[key]): p["probability"] for p in row["probabilities"]}
    return shown


async def by_system_one(
    client: httpx.AsyncClient, names: dict[str, str], values: list[Any], levels: list[str]
) -> Answers:
    questions = {
        "predicate": {"type": "noul", "instructions": "Is it urgent?"},
        "choice": {
            "type": "choice",
            "instructions": "Which team?",
            "criteria": {str(v): None for v in values},
        },
        "score": {"type": "score", "instructions": "How angry?", "criteria": levels},
    }
    wanted = {name: questions[kind] for kind, name in names.items()}
    answer = await client.post("/v1/systemone", json={"model": BASE, "state": "mail", "questions": wanted})
    found = answer.raise_for_status().json()["answers"]
    shown: Answers = {}
    for kind, name in names.items():
        row = found[name]
        if kind == "predicate":
            shown[kind] = {"yes": row["noul"]}
        elif kind == "choice":
            shown[kind] = {by_key(value): row["probabilities"][str(value)] for value in values}
        else:
            shown[kind] = {by_key(row["legend"][index]): p for index, p in row["probabilities"].items()}
    return shown


@pytest.mark.parametrize("ask", [by_decisions, by_system_one])
def test_order_names_and_company_change_no_answer(server: Server, ask: Wire) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        names = {"predicate": "urgent", "choice": "team", "score": "anger"}
        first = await ask(client, names, VALUES, LEVELS)
        assert len({*first["choice"].values(), *first["score"].values()}) > 4
        assert await ask(client, names, VALUES[::-1], LEVELS[::-1]) == approximately(first)
        backwards = dict(reversed(names.items()))
        assert await ask(client, backwards, VALUES, LEVELS) == approximately(first)
        renamed = {"predicate": "anger", "choice": "q1", "score": "urgent"}
        assert await ask(client, renamed, VALUES, LEVELS) == approximately(first)
        for kind, name in names.items():
            alone = await ask(client, {kind: name}, VALUES, LEVELS)
            assert alone == approximately({kind: first[kind]})

    server.run(scenario)


def approximately(answers: Answers) -> Answers:
    return {kind: pytest.approx(row) for kind, row in answers.items()}


def test_both_wires_give_the_same_answers(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        names = {"predicate": "urgent", "choice": "team", "score": "anger"}
        texts = ["billing", "delivery", "other"]
        decisions = await by_decisions(client, names, texts, LEVELS)
        assert await by_system_one(client, names, texts, LEVELS) == approximately(decisions)

    server.run(scenario)
