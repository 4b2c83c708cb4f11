"""An engine's answers to typed questions, made by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from abmll.prediction.run import Prediction
from abmll.prediction.uncertainty import summarise
from abmll.text.questions import Question
from service.engine.answers import Decided, Timings
from service.engine.engine import Engine
from service.engine.requests import AdaptRequest, CacheOutcome, DecideRequest
from service.gating.confidence import Confidence
from service.gating.decisions import DecidedPrediction, decide

TOKENS = 7


def decided_by_hand(
    request: DecideRequest,
    probabilities: Sequence[Sequence[float]],
    *,
    learned: bool = False,
    answerable: float | None = 0.9,
) -> Decided:
    """The decided answers about one input, with these probabilities of each question's options."""
    rows: list[DecidedPrediction] = []
    for question, row in zip(request.questions, probabilities, strict=True):
        predictive = summarise(question.options, torch.tensor([row], dtype=torch.float64), samples=16)
        prediction = Prediction(predictive, TOKENS, 0, typicality=0.5, answerable=answerable)
        rows.append(decide(prediction, Confidence(predictive.confidence), request.gate.thresholds))
    adapter = request.adapter
    return Decided(
        rows=[rows],
        learned=[learned] * len(rows),
        adapter_id="adp_made" if isinstance(adapter, AdaptRequest) else adapter,
        cache=CacheOutcome.HIT,
        timings=Timings(),
        tokens=TOKENS,
    )


def by_hash(request: DecideRequest) -> Decided:
    """Answers that depend on the input, the instruction, and each option with its description."""
    return decided_by_hand(request, [_by_hash(question, request.inputs[0]) for question in request.questions])


def _by_hash(question: Question, text: str) -> list[float]:
    descriptions = question.descriptions or ("",) * len(question.options)
    seen = [
        f"{text} {question.instruction} {row}" for row in zip(question.options, descriptions, strict=True)
    ]
    weights = [1 + hashlib.sha256(row.encode("utf-8", "surrogatepass")).digest()[0] for row in seen]
    return [weight / sum(weights) for weight in weights]


class Recorder:
    """Stands for `Engine.decide`: records its requests, and answers them `by_hash`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[DecideRequest] = []
        recorder = self

        async def answer(engine: Engine, request: DecideRequest, **_: Any) -> Decided:
            recorder.requests.append(request)
            return by_hash(request)

        monkeypatch.setattr(Engine, "decide", answer, raising=False)
