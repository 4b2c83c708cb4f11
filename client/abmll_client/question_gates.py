"""Gates of an app by question: one request answers all questions, and each has its own gate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from abmll_client.gate import AsyncConfidenceGate, ConfidenceGate
from abmll_client.gate_results import GateResult
from abmll_client.predictors import ByQuestion, ModelAnswer

GateT = TypeVar("GateT", ConfidenceGate, AsyncConfidenceGate)


class _Gates(Generic[GateT]):
    """The gates of questions by name. `gates[name]` has the statistics and the queue of one."""

    def __init__(self, gates: Mapping[str, Mapping[str, Any]] | None) -> None:
        self._gates: dict[str, GateT] = {name: self._gate(name, f) for name, f in (gates or {}).items()}

    def __getitem__(self, question: str) -> GateT:
        return self._gates[question]

    def _gate(self, question: str, fields: Mapping[str, Any]) -> GateT:
        raise NotImplementedError

    def _take_in(self, rows: ByQuestion) -> ByQuestion:
        """Return `rows`, with a gate for each question. Raises `ValueError` for a gate without one."""
        for found in rows[:1]:
            for name in self._gates:
                if name not in found:
                    raise ValueError(
                        f"there is a gate for {name!r}, which is none of the questions {list(found)}"
                    )
            self._gates |= {name: self._gate(name, {}) for name in found if name not in self._gates}
        return rows


class QuestionGates(_Gates[ConfidenceGate]):
    """Decides for each input and question whose answer to take.

    `predictor` is `predictors.questions_from_client`. `gates` has the arguments of a
    `ConfidenceGate` by the name of the question, such as `{"team": {"min_confidence": 0.8}}`. A
    question that it does not name has the server's decision alone.
    """

    def __init__(
        self,
        predictor: Callable[[Sequence[str]], ByQuestion],
        gates: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._predictor = predictor
        super().__init__(gates)

    def decide(self, texts: Sequence[str]) -> list[dict[str, GateResult]]:
        """Decide on each text, in their order; results are by the name of the question.

        Raises `ValueError` for a gate of what is no question.
        """
        rows = zip(texts, self._take_in(self._predictor(texts)), strict=True)
        return [
            {name: self[name].take(text, answer) for name, answer in found.items()} for text, found in rows
        ]

    def _gate(self, question: str, fields: Mapping[str, Any]) -> ConfidenceGate:
        def alone(texts: Sequence[str]) -> list[ModelAnswer]:
            return [found[question] for found in self._predictor(texts)]

        return ConfidenceGate(alone, **fields)


class AsyncQuestionGates(_Gates[AsyncConfidenceGate]):
    """As `QuestionGates`, with a predictor to await and gates that are `AsyncConfidenceGate`."""

    def __init__(
        self,
        predictor: Callable[[Sequence[str]], Awaitable[ByQuestion]],
        gates: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._predictor = predictor
        super().__init__(gates)

    async def decide(self, texts: Sequence[str]) -> list[dict[str, GateResult]]:
        """As `QuestionGates.decide`."""
        rows = zip(texts, self._take_in(await self._predictor(texts)), strict=True)
        return list(await asyncio.gather(*(self._decide(text, found) for text, found in rows)))

    async def _decide(self, text: str, found: Mapping[str, ModelAnswer]) -> dict[str, GateResult]:
        taken = await asyncio.gather(*(self[name].take(text, answer) for name, answer in found.items()))
        return dict(zip(found, taken, strict=True))

    def _gate(self, question: str, fields: Mapping[str, Any]) -> AsyncConfidenceGate:
        async def alone(texts: Sequence[str]) -> list[ModelAnswer]:
            return [found[question] for found in await self._predictor(texts)]

        return AsyncConfidenceGate(alone, **fields)
