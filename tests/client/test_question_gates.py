"""Gates by question: each answer by its own thresholds, fallback and queue, in one request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from abmll_client import (
    AsyncClient,
    AsyncQuestionGates,
    GateResult,
    ModelAnswer,
    QuestionGates,
    questions_from_async_client,
    questions_from_client,
)
from abmll_client.predictors import ByQuestion
from service.embedded import Embedded
from tests.client.conftest import Server
from tests.client.test_decide import CASES, QUESTIONS

FOUND = {"urgent": ModelAnswer(True, 0.7, 0.4, 0.0), "team": ModelAnswer("it", 0.6, 0.2, 0.0)}
GATES: dict[str, dict[str, Any]] = {"team": {"min_confidence": 0.65, "fallback": lambda text: text or None}}


def shown(results: Sequence[dict[str, GateResult]]) -> list[dict[str, tuple[Any, str]]]:
    return [{name: (row.answer, row.source) for name, row in found.items()} for found in results]


def test_each_question_has_its_own_threshold_fallback_queue_and_statistics() -> None:
    gates = QuestionGates(lambda texts: [FOUND] * len(texts), GATES)
    results = gates.decide(["billing", ""])
    assert shown(results) == [
        {"urgent": (True, "model"), "team": ("billing", "fallback")},
        {"urgent": (True, "model"), "team": (None, "human")},
    ]
    assert (gates["urgent"].statistics.accepted, gates["urgent"].queue) == (2, [])
    assert (gates["team"].statistics.fallen_back, gates["team"].queue) == (1, [results[1]["team"]])
    gates["urgent"].record(results[0]["urgent"], True)
    assert gates["urgent"].statistics.accuracy == 1
    assert [row.source for row in gates["team"].decide(["x"])] == ["fallback"]
    with pytest.raises(KeyError):
        gates["colour"]


def test_a_gate_of_no_question_is_an_error_and_not_forgotten() -> None:
    gates = QuestionGates(lambda texts: [FOUND] * len(texts), {"tema": {"min_confidence": 0.9}})
    with pytest.raises(ValueError, match="a gate for 'tema', which is none of the questions"):
        gates.decide(["x"])
    assert gates.decide([]) == []


def test_gates_to_await_decide_alike_and_their_fallbacks_run_side_by_side() -> None:
    meeting = asyncio.Barrier(2)

    async def meet(text: str) -> str:
        await asyncio.wait_for(meeting.wait(), 20)
        return text

    async def predictor(texts: Sequence[str]) -> ByQuestion:
        return [FOUND] * len(texts)

    gates = AsyncQuestionGates(predictor, {"team": {"min_confidence": 0.65, "fallback": meet}})
    results = asyncio.run(gates.decide(["a", "b"]))
    assert shown(results) == [
        {"urgent": (True, "model"), "team": ("a", "fallback")},
        {"urgent": (True, "model"), "team": ("b", "fallback")},
    ]
    assert [row.source for row in asyncio.run(gates["urgent"].decide(["x"]))] == ["model"]


def test_the_servers_answers_and_its_gates_by_question_are_taken_over(server: Server) -> None:
    running = Embedded(server.app)
    with running.client() as client:
        made = client.create_adapter(questions=QUESTIONS, cases=CASES)
        asked = questions_from_client(client, model=made.id, gates={"anger": {"min_confidence": 1}})
        (found,) = asked(["x"])
        answers = client.decide(["x"], model=made.id).results[0].answers
        for name, answer in answers.items():
            taken = found[name]
            assert (taken.answer, taken.confidence, taken.margin, taken.mutual_information) == (
                answer.answer, answer.confidence, answer.margin, answer.mutual_information,
            )  # fmt: skip
        (results,) = QuestionGates(asked).decide(["x"])
        assert [row.source for row in results.values()] == ["model", "model", "human"]
        assert results["anger"].reason == "confidence_below_minimum"
    running.close()


def test_the_asynchronous_client_answers_gates_too(server: Server) -> None:
    async def scenario() -> None:
        with server.listening() as running:
            async with AsyncClient(running.url) as client:
                asked = questions_from_async_client(client, QUESTIONS, samples=4)
                (results,) = await AsyncQuestionGates(asked).decide(["x"])
                assert [row.source for row in results.values()] == ["model"] * 3

    asyncio.run(scenario())
