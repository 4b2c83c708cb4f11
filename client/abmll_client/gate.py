"""The gate of an app: take the model's answer where it is sure, else ask a fallback, else hand the input to a human."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

from abmll_client.predictors import AsyncPredictor, Predictor, Scored
from service.gating.decisions import CONFIDENCE, MARGIN, MUTUAL_INFORMATION

log = logging.getLogger(__name__)

Source = Literal["model", "fallback", "human"]


@dataclass(frozen=True)
class Outcome:
    """What became of one input. `answer` is None while a human has it; `reason` says why the model's was not taken."""

    text: str
    answer: Any
    source: Source
    scored: Scored
    reason: str | None = None


HumanQueue: TypeAlias = list[Outcome] | Callable[[Outcome], object]


@dataclass(frozen=True)
class GateStatistics:
    """Counts since the gate was made; shares and means are None as long as there is nothing to count.

    `labelled` and `correct` are of accepted answers that `record` was told the label of.
    """

    seen: int = 0
    accepted: int = 0
    fallen_back: int = 0
    queued: int = 0
    failed_fallbacks: int = 0
    total_confidence: float = 0.0
    labelled: int = 0
    correct: int = 0

    @property
    def coverage(self) -> float | None:
        """Share of inputs for which the model's answer was taken."""
        return _share(self.accepted, self.seen)

    @property
    def mean_confidence(self) -> float | None:
        """Of the model's answers, taken or not."""
        return _share(self.total_confidence, self.seen)

    @property
    def accuracy(self) -> float | None:
        """Share of right ones among the accepted answers whose label is known."""
        return _share(self.correct, self.labelled)


class GateFields(TypedDict, total=False):
    """What gates take: thresholds, besides the server's own decision, and where inputs for a human go."""

    min_confidence: float | None
    min_margin: float | None
    max_mutual_information: float | None
    queue: HumanQueue | None


class _Gate:
    """When an answer is taken, what is handed to humans, and the statistics. Threads may share it."""

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

    def record(self, outcome: Outcome, label: Any) -> None:
        """Tell the true label of an outcome, once. It counts where the model's answer was taken."""
        if outcome.source == "model":
            with self._lock:
                now = self._statistics
                right = bool(outcome.answer == label)
                self._statistics = replace(now, labelled=now.labelled + 1, correct=now.correct + right)

    def _reason(self, scored: Scored) -> str | None:
        """Why not to take the answer; None to take it."""
        if scored.abstain_reason is not None:
            return scored.abstain_reason
        if self._min_confidence is not None and scored.confidence < self._min_confidence:
            return CONFIDENCE
        if self._min_margin is not None and scored.margin < self._min_margin:
            return MARGIN
        if self._max_mutual_information is not None:
            if scored.mutual_information is None:
                raise ValueError("max_mutual_information: this model's answers have no mutual information")
            if scored.mutual_information > self._max_mutual_information:
                return MUTUAL_INFORMATION
        return None

    def _accepted(self, text: str, scored: Scored) -> Outcome:
        return self._counted(Outcome(text, scored.answer, "model", scored))

    def _refused(
        self, text: str, scored: Scored, reason: str, instead: Any, failure: Exception | None
    ) -> Outcome:
        """`instead` is the fallback's answer, None where there is none; `failure` is what the fallback raised."""
        if failure is not None:
            log.warning("the fallback failed; a human gets its input", exc_info=failure)
        source: Source = "human" if instead is None else "fallback"
        outcome = Outcome(text, instead, source, scored, reason)
        if source == "human":
            hand_over = self.queue.append if isinstance(self.queue, list) else self.queue
            hand_over(outcome)
        return self._counted(outcome, failed_fallbacks=int(failure is not None))

    def _counted(self, outcome: Outcome, failed_fallbacks: int = 0) -> Outcome:
        with self._lock:
            now = self._statistics
            self._statistics = replace(
                now,
                seen=now.seen + 1,
                accepted=now.accepted + (outcome.source == "model"),
                fallen_back=now.fallen_back + (outcome.source == "fallback"),
                queued=now.queued + (outcome.source == "human"),
                failed_fallbacks=now.failed_fallbacks + failed_fallbacks,
                total_confidence=now.total_confidence + outcome.scored.confidence,
            )
        return outcome


class ConfidenceGate(_Gate):
    """Decides, input by input, whose answer to take; `predictor` is one of `abmll_client.predictors`.

    The model's answer is taken where the server did not abstain and every threshold holds. Otherwise `fallback` is asked;
    where it returns None or raises, or there is none, the outcome goes to `queue`: a callable, or a list, by default an own one.
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

    def decide(self, texts: Sequence[str]) -> list[Outcome]:
        """An outcome for each text, in their order."""
        return [self._decide(*pair) for pair in zip(texts, self._predictor(texts), strict=True)]

    def _decide(self, text: str, scored: Scored) -> Outcome:
        reason = self._reason(scored)
        if reason is None:
            return self._accepted(text, scored)
        instead, failure = None, None
        if self._fallback is not None:
            try:
                instead = self._fallback(text)
            except Exception as error:
                failure = error
        return self._refused(text, scored, reason, instead, failure)


class AsyncConfidenceGate(_Gate):
    """As `ConfidenceGate`, with a predictor to await; `fallback` may be a coroutine function, `concurrency` run at a time."""

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

    async def decide(self, texts: Sequence[str]) -> list[Outcome]:
        """An outcome for each text, in their order."""
        pairs = zip(texts, await self._predictor(texts), strict=True)
        return list(await asyncio.gather(*(self._decide(*pair) for pair in pairs)))

    async def _decide(self, text: str, scored: Scored) -> Outcome:
        reason = self._reason(scored)
        if reason is None:
            return self._accepted(text, scored)
        instead, failure = None, None
        if self._fallback is not None:
            async with self._places:
                try:
                    given = self._fallback(text)
                    instead = await given if inspect.isawaitable(given) else given
                except Exception as error:
                    failure = error
        return self._refused(text, scored, reason, instead, failure)


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
