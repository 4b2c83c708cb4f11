"""The gate of an app, against rules that are written out here and decisions of the server."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from abmll_client import (
    AsyncClient,
    AsyncConfidenceGate,
    ConfidenceGate,
    GateResult,
    GateStatistics,
    ModelAnswer,
    from_async_client,
    from_client,
    from_estimator,
)
from service.embedded import Embedded
from service.gating.decisions import CONFIDENCE, MARGIN, MUTUAL_INFORMATION
from tests.client.conftest import OPTIONS, SUPPORT
from tests.service.conftest import Server

TEXTS = [f"text {i}" for i in range(30)]
ANSWERS = {
    "sure": ModelAnswer("a", 0.9, 0.8, 0.01),
    "unsure": ModelAnswer("b", 0.55, 0.1, 0.02),
    "close": ModelAnswer("c", 0.8, 0.05, 0.02),
    "torn": ModelAnswer("d", 0.8, 0.6, 0.5),
    "abstained": ModelAnswer("e", 0.95, 0.9, 0.0, "server_said_so"),
}
ALL = list(ANSWERS)
THRESHOLDS = {"min_confidence": 0.6, "min_margin": 0.2, "max_mutual_information": 0.1}
REASONS = [None, CONFIDENCE, MARGIN, MUTUAL_INFORMATION, "server_said_so"]


def score(texts: Sequence[str]) -> list[ModelAnswer]:
    return [ANSWERS[text] for text in texts]


async def score_later(texts: Sequence[str]) -> list[ModelAnswer]:
    return score(texts)


def sources(results: Sequence[GateResult]) -> list[tuple[str, Any, str]]:
    return [(result.text, result.answer, result.source) for result in results]


def test_each_condition_sends_its_input_to_a_human_with_its_reason() -> None:
    gate = ConfidenceGate(score, **THRESHOLDS)
    results = gate.decide(ALL)
    assert [result.reason for result in results] == REASONS
    assert sources(results[:2]) == [("sure", "a", "model"), ("unsure", None, "human")]
    assert gate.queue == results[1:]
    assert [result.model_answer for result in results] == list(ANSWERS.values())


def test_without_thresholds_the_servers_decision_stands() -> None:
    assert [result.source for result in ConfidenceGate(score).decide(ALL)] == ["model"] * 4 + ["human"]


def test_the_fallback_is_asked_only_where_it_is_needed_and_may_pass_or_fail() -> None:
    asked = []

    def fallback(text: str) -> str | None:
        asked.append(text)
        if text == "close":
            raise RuntimeError("out of order")
        return None if text == "torn" else text.upper()

    queued: list[GateResult] = []
    gate = ConfidenceGate(score, fallback=fallback, queue=queued.append, **THRESHOLDS)
    results = gate.decide(ALL)
    assert asked == ALL[1:]
    assert sources(results) == [
        ("sure", "a", "model"),
        ("unsure", "UNSURE", "fallback"),
        ("close", None, "human"),
        ("torn", None, "human"),
        ("abstained", "ABSTAINED", "fallback"),
    ]
    assert queued == [results[2], results[3]]
    statistics = gate.statistics
    assert (statistics.seen, statistics.accepted, statistics.fallen_back, statistics.queued) == (5, 1, 2, 2)
    assert statistics.failed_fallbacks == 1
    assert statistics.coverage == 1 / 5
    assert statistics.mean_confidence == pytest.approx((0.9 + 0.55 + 0.8 + 0.8 + 0.95) / 5)


def test_accuracy_is_that_of_accepted_answers_with_a_label() -> None:
    gate = ConfidenceGate(score)
    assert gate.statistics == GateStatistics()
    assert (gate.statistics.coverage, gate.statistics.accuracy, gate.statistics.mean_confidence) == (
        None,
    ) * 3
    for result, label in zip(gate.decide(ALL), ["a", "b", "x", "d", "e"], strict=True):
        gate.record(result, label)
    assert (gate.statistics.labelled, gate.statistics.correct, gate.statistics.accuracy) == (4, 3, 0.75)


def test_coroutine_fallbacks_run_a_few_at_a_time_and_give_the_same_results() -> None:
    running, most = 0, 0

    async def fallback(text: str) -> str | None:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.01)
        running -= 1
        if text == "close":
            raise RuntimeError("out of order")
        return None if text == "torn" else text.upper()

    def blocking(text: str) -> str | None:
        return asyncio.run(fallback(text))

    async def scenario() -> tuple[list[GateResult], GateStatistics]:
        gate = AsyncConfidenceGate(score_later, fallback=fallback, concurrency=2, **THRESHOLDS)
        return await gate.decide(ALL), gate.statistics

    plain = ConfidenceGate(score, fallback=blocking, **THRESHOLDS)
    expected = plain.decide(ALL)
    most = 0
    assert asyncio.run(scenario()) == (expected, plain.statistics)
    assert most == 2

    async def plain_fallback() -> list[GateResult]:
        return await AsyncConfidenceGate(score_later, fallback=str.upper, **THRESHOLDS).decide(ALL)

    assert [result.answer for result in asyncio.run(plain_fallback())] == ["a", *map(str.upper, ALL[1:])]
    with pytest.raises(TypeError, match="AsyncConfidenceGate"):
        ConfidenceGate(score, fallback=fallback)


def test_threads_share_a_gate_without_losing_counts() -> None:
    gate = ConfidenceGate(score, **THRESHOLDS)
    threads = [threading.Thread(target=lambda: [gate.decide(ALL) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (gate.statistics.seen, gate.statistics.accepted, gate.statistics.queued) == (4000, 800, 3200)


def test_a_client_is_gated_by_the_servers_decision_or_by_thresholds_alike(shared_embedded: Embedded) -> None:
    with shared_embedded.client() as client:
        adapter = client.create_adapter(SUPPORT, options=OPTIONS).id
        answers = client.predict(TEXTS, adapter_id=adapter, gate={"min_confidence": 0.52}).predictions
        theirs = ConfidenceGate(from_client(client, adapter_id=adapter, gate={"min_confidence": 0.52}))
        ours = ConfidenceGate(from_client(client, adapter_id=adapter), min_confidence=0.52)
        decided = theirs.decide(TEXTS)
        assert sources(decided) == sources(ours.decide(TEXTS))
        assert [result.source == "model" for result in decided] == [p.decision == "answer" for p in answers]
        assert {result.source for result in decided} == {"model", "human"}
        assert [result.reason for result in decided] == [p.abstain_reason for p in answers]
        assert [result.model_answer.mutual_information for result in decided] == [
            p.uncertainty.mutual_information for p in answers
        ]


def test_an_asynchronous_client_is_gated(server: Server) -> None:
    async def scenario() -> None:
        transport = httpx.ASGITransport(server.app)
        async with server.running(), AsyncClient("http://server", transport=transport) as client:
            adapter = (await client.create_adapter(SUPPORT, options=OPTIONS)).id
            gate = AsyncConfidenceGate(from_async_client(client, adapter_id=adapter), min_confidence=0.52)
            answers = (await client.predict(TEXTS, adapter_id=adapter)).predictions
            for result, answer in zip(await gate.decide(TEXTS), answers, strict=True):
                assert result.answer == (answer.answer if answer.confidence >= 0.52 else None)

    asyncio.run(scenario())


class Estimator:
    """Classifier of three classes with given probabilities."""

    classes_ = np.array([10, 20, 30])

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self.rows = rows

    def predict_proba(self, texts: Sequence[str]) -> Any:
        return np.array(self.rows)


def test_an_estimator_is_gated_by_its_probabilities() -> None:
    rows = [[0.2, 0.7, 0.1], [0.4, 0.2, 0.4], [0.0, 0.0, 1.0]]
    gate = ConfidenceGate(from_estimator(Estimator(rows)), min_confidence=0.4, min_margin=0.3)
    results = gate.decide(["x", "y", "z"])
    assert [result.answer for result in results] == [20, None, 30]
    for (_, second, first), result in zip(map(sorted, rows), results, strict=True):
        assert (result.model_answer.confidence, result.model_answer.margin) == (
            first,
            pytest.approx(first - second),
        )
    gate.record(results[0], 20)
    assert gate.statistics.accuracy == 1
    with pytest.raises(ValueError, match="no mutual information"):
        ConfidenceGate(from_estimator(Estimator(rows)), max_mutual_information=1).decide(["x", "y", "z"])


def test_conditions_are_looked_at_in_the_servers_order() -> None:
    worst = ModelAnswer("a", 0.3, 0.0, 2.0)
    for chosen in itertools.chain.from_iterable(itertools.combinations(THRESHOLDS, n) for n in (1, 2, 3)):
        gate = ConfidenceGate(lambda texts: [worst], **{name: THRESHOLDS[name] for name in chosen})
        (result,) = gate.decide(["x"])
        assert result.reason == [CONFIDENCE, MARGIN, MUTUAL_INFORMATION][list(THRESHOLDS).index(chosen[0])]
