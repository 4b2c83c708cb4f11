"""The gate of an app: it takes the model's answer, a fallback's, or hands the input to a human."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypedDict, Unpack

from abmll_client.gate_results import (
    CONFIDENCE,
    MARGIN,
    MUTUAL_INFORMATION,
    GateResult,
    GateStatistics,
    Source,
)
from abmll_client.predictors import AsyncPredictor, ModelAnswer, Predictor

log = logging.getLogger(__name__)

HumanQueue: TypeAlias = list[GateResult] | Callable[[GateResult], object]


class GateFields(TypedDict, total=False):
    """Thresholds that hold besides the server's own decision, and where inputs for a human go.

    `max_mutual_information` is in nats.
    """

    min_confidence: float | None
    min_margin: float | None
    max_mutual_information: float | None
    queue: HumanQueue | None


class _GateBase:
    """When an answer is taken, what humans get, and the statistics. Threads may share it."""

    def __init__(
        self,
        min_confidence: float | None = None,
        min_margin: float | None = None,
        max_mutual_information: float | None = None,
        queue: HumanQueue | None = None,
    ) -> None:
        self._min_confidence, self._min_margin = min_confidence, min_margin
        self._max_mutual_information = max_mutual_information
        self.queue: HumanQueue = [] if queue is None else queue
        self._statistics = GateStatistics()
        self._lock = threading.Lock()

    @property
    def statistics(self) -> GateStatistics:
        """Counts up to now."""
        return self._statistics

    def record(self, result: GateResult, label: Any) -> None:
        """Count the true label of a result, once. It counts where the model's answer was taken."""
        if result.source == "model":
            with self._lock:
                now = self._statistics
                right = bool(result.answer == label)
                self._statistics = replace(now, labelled=now.labelled + 1, correct=now.correct + right)

    def _reason(self, found: ModelAnswer) -> str | None:
        """Why not to take the answer; None to take it."""
        if found.abstain_reason is not None:
            return found.abstain_reason
        if self._min_confidence is not None and found.confidence < self._min_confidence:
            return CONFIDENCE
        if self._min_margin is not None and found.margin < self._min_margin:
            return MARGIN
        if self._max_mutual_information is not None:
            if found.mutual_information is None:
                raise ValueError("max_mutual_information: this model's answers have no mutual information")
            if found.mutual_information > self._max_mutual_information:
                return MUTUAL_INFORMATION
        return None

    def _accepted(self, text: str, found: ModelAnswer) -> GateResult:
        return self._counted(GateResult(text, found.answer, "model", found))

    def _refused(
        self, text: str, found: ModelAnswer, reason: str, instead: Any, failure: Exception | None
    ) -> GateResult:
        """Give the fallback's answer `instead`, or hand over to a human where it is None.

        `failure` is what the fallback raised.
        """
        if failure is not None:
            log.warning("the fallback failed; a human gets its input", exc_info=failure)
        source: Source = "human" if instead is None else "fallback"
        result = GateResult(text, instead, source, found, reason)
        if source == "human":
            hand_over = self.queue.append if isinstance(self.queue, list) else self.queue
            hand_over(result)
        return self._counted(result, failed_fallbacks=int(failure is not None))

    def _counted(self, result: GateResult, failed_fallbacks: int = 0) -> GateResult:
        with self._lock:
            now = self._statistics
            self._statistics = replace(
                now,
                seen=now.seen + 1,
                accepted=now.accepted + (result.source == "model"),
                fallen_back=now.fallen_back + (result.source == "fallback"),
                queued=now.queued + (result.source == "human"),
                failed_fallbacks=now.failed_fallbacks + failed_fallbacks,
                total_confidence=now.total_confidence + result.model_answer.confidence,
            )
        return result


class ConfidenceGate(_GateBase):
    """Decides for each input whose answer to take; `predictor` is one of `abmll_client.predictors`.

    The model's answer is taken where the server did not abstain and every threshold holds.
    Otherwise `fallback` is called. Where it returns None or raises, or there is none, the result
    goes to `queue`: a callable, or a list, by default a new one.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        fallback: Callable[[str], Any] | None = None,
        **gate: Unpack[GateFields],
    ) -> None:
        super().__init__(**gate)
        if inspect.iscoroutinefunction(fallback):
            raise TypeError("a fallback that is awaited needs an AsyncConfidenceGate")
        self._predictor, self._fallback = predictor, fallback

    def decide(self, texts: Sequence[str]) -> list[GateResult]:
        """Decide on each text, in their order."""
        return [self.take(*pair) for pair in zip(texts, self._predictor(texts), strict=True)]

    def take(self, text: str, found: ModelAnswer) -> GateResult:
        """Decide on a text whose answer by the model is there."""
        reason = self._reason(found)
        if reason is None:
            return self._accepted(text, found)
        instead, failure = None, None
        if self._fallback is not None:
            try:
                instead = self._fallback(text)
            except Exception as error:
                failure = error
        return self._refused(text, found, reason, instead, failure)


class AsyncConfidenceGate(_GateBase):
    """As `ConfidenceGate`, with a predictor to await.

    `fallback` may be a coroutine function; at most `concurrency` of its calls run at a time.
    """

    def __init__(
        self,
        predictor: AsyncPredictor,
        *,
        fallback: Callable[[str], Awaitable[Any] | Any] | None = None,
        concurrency: int = 8,
        **gate: Unpack[GateFields],
    ) -> None:
        super().__init__(**gate)
        self._predictor, self._fallback = predictor, fallback
        self._places = asyncio.Semaphore(concurrency)

    async def decide(self, texts: Sequence[str]) -> list[GateResult]:
        """Decide on each text, in their order."""
        pairs = zip(texts, await self._predictor(texts), strict=True)
        return list(await asyncio.gather(*(self.take(*pair) for pair in pairs)))

    async def take(self, text: str, found: ModelAnswer) -> GateResult:
        """As `ConfidenceGate.take`."""
        reason = self._reason(found)
        if reason is None:
            return self._accepted(text, found)
        instead, failure = None, None
        if self._fallback is not None:
            async with self._places:
                try:
                    given = self._fallback(text)
                    instead = await given if inspect.isawaitable(given) else given
                except Exception as error:
                    failure = error
        return self._refused(text, found, reason, instead, failure)
