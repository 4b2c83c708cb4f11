"""An engine's answers to typed questions, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from abmll.prediction.run import Prediction
from abmll.prediction.uncertainty import summarise
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
    adapter_id = "adp_made" if isinstance(adapter, AdaptRequest) else adapter
    return Decided(
        rows=[rows],
        learned=[learned] * len(rows),
        adapter_id=adapter_id,
        model=adapter_id or str(request.model),
        cache=CacheOutcome.HIT,
        timings=Timings(),
        tokens_by_input=[TOKENS],
    )


class Recorder:
    """Stands for `Engine.decide`: records its requests, and gives all options the same probability."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[DecideRequest] = []
        recorder = self

        async def answer(engine: Engine, request: DecideRequest, **_: Any) -> Decided:
            recorder.requests.append(request)
            alike = [[1 / len(question.options)] * len(question.options) for question in request.questions]
            return decided_by_hand(request, alike)

        monkeypatch.setattr(Engine, "decide", answer)
