"""Typed questions on the real model: zero-shot, by cases, by the adapter made from them."""

from __future__ import annotations

from typing import Any

import jevbench
import openai
import pytest

from model_store.pretrained.catalogue import DEFAULT_BASE
from service.schemas import demo
from tests.e2e.conftest import Server
from tests.e2e.test_server import BF16_TOLERANCE
from tests.e2e.tickets import TICKETS

QUESTION = {
    "type": "choice",
    "name": "team",
    "instructions": "Which team answers the message?",
    "choices": [{"value": value} for value in sorted({label for _, label in demo.SUPPORT})],
}
CASES = [{"input": text, "answers": {"team": label}} for text, label in demo.SUPPORT]
SHOWN = TICKETS[::7]


def test_cases_teach_and_their_adapter_answers_alike(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.client.base_url}/v1", api_key="any", max_retries=0) as client:

        def right(model: str, **abmll: Any) -> tuple[list[float], Any]:
            """The probabilities of the tickets' own labels, and the last decision."""
            found = []
            for text, label in SHOWN:
                decision = client.decisions.create(
                    model=model,
                    input=text,
                    questions=[QUESTION],
                    extra_body={"abmll": {"samples": 4, **abmll}},
                )
                (answer,) = decision.answers
                found += [row.probability for row in answer.probabilities if row.value == label]
            return found, decision

        zero_shot, decision = right(DEFAULT_BASE)
        assert (decision.abmll["adapter_id"], decision.answers[0].abmll["learned"]) == (None, False)
        taught, decision = right(DEFAULT_BASE, cases=CASES)
        assert decision.answers[0].abmll["learned"]
        again, _ = right(decision.abmll["adapter_id"])
    assert len(taught) == len(SHOWN)
    assert sum(taught) > sum(zero_shot)
    assert again == pytest.approx(taught, abs=BF16_TOLERANCE)


def test_jevbench_reads_the_answers(server: Server) -> None:
    model = jevbench.systemone(f"{server.client.base_url}/v1/systemone", DEFAULT_BASE)
    with model.client:
        checked = jevbench.check(model)
    assert checked["questions"] == {"noul": 4, "choice": 2, "score": 1}
