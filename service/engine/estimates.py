"""What a request will cost, by the number of its characters: known before anything is in tokens.

The price (`pricing.py`) needs the tokens, which take milliseconds. What has no room is refused by
this estimate before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abmll.prediction.settings import PredictSettings
from service.engine.pricing import Price, worked_examples
from service.engine.requests import AdaptRequest, DecideRequest, PredictRequest
from service.executors.contract import ServedModel

if TYPE_CHECKING:
    from abmll.text.tasks import Example, Query
    from model_store.adapters.manifest import AdapterManifest

CHARACTERS_PER_TOKEN = 4  # of English, about; prices correct it
STEP_FACTOR = 3  # a token forward and backward, in tokens forward
WEIGHT = 0.1  # of the newest price in the average
# Most tokens of a prompt with demonstrations, as in the evaluation of in-context learning.
IN_CONTEXT_TOKENS = 2048


@dataclass(frozen=True)
class Size:
    """The characters of a request times how often they are read, by what is done with them."""

    adapt: float = 0.0
    predict: float = 0.0

    @classmethod
    def of(cls, asked: AdaptRequest | PredictRequest | DecideRequest, served: ServedModel) -> Size:
        """Return the size of a request."""
        if isinstance(asked, AdaptRequest):
            return cls(adapt=_adaptation(asked, served))
        adapt = _adaptation(asked.adapter, served) if isinstance(asked.adapter, AdaptRequest) else 0.0
        if isinstance(asked, PredictRequest):
            characters = _characters(asked.queries)
        else:
            each = sum(
                len(question.instruction) + sum(map(len, question.options)) for question in asked.questions
            )
            characters = sum(len(text) + each for text in asked.inputs)
        return cls(adapt, float(characters * _passes(asked.settings)))

    @classmethod
    def of_diagnosis(cls, manifest: AdapterManifest, folds: int, samples: int, served: ServedModel) -> Size:
        """Return the size of a diagnosis of this adapter: an adaptation a fold, and the answers.

        Every example is answered with `samples` samples, once without an adapter, and once with
        demonstrations.
        """
        rows = manifest.support.examples
        characters = _characters(rows)
        steps = int(manifest.settings.get("steps", served.defaults.steps))
        shown = len(rows) * min(characters, IN_CONTEXT_TOKENS * CHARACTERS_PER_TOKEN)
        adapt = characters * (1 + STEP_FACTOR * steps) * folds
        return cls(float(adapt), float(characters * (1 + max(1, samples)) + shown))


def _adaptation(asked: AdaptRequest, served: ServedModel) -> float:
    steps = 0 if asked.refine else asked.overrides.apply(served.defaults).steps
    fits = 1 + (asked.calibration_folds or 0)
    return float(_characters(asked.support) * (1 + STEP_FACTOR * steps) * fits)


def _characters(rows: Iterable[Query | Example]) -> int:
    return sum(len(row.input) + len(row.instruction) + sum(map(len, row.options)) for row in rows)


def _passes(settings: PredictSettings) -> int:
    return max(1, settings.option_samples)


class Estimates:
    """Learns the seconds of a character from prices. Used from one event loop."""

    def __init__(self) -> None:
        self._adapt: float | None = None
        self._predict: float | None = None

    def seconds(self, size: Size, served: ServedModel) -> float:
        """Return about how long an idle worker takes; 0 where the speed is not known."""
        if served.prices is None:
            return 0.0
        if self._adapt is None or self._predict is None:
            self._begin(served)
        assert self._adapt is not None and self._predict is not None
        return size.adapt * self._adapt + size.predict * self._predict

    def learn(self, size: Size, price: Price) -> None:
        """Take the price of a request into the averages. A part that costs nothing was not needed."""
        self._adapt = _averaged(self._adapt, size.adapt, price.adapt_seconds)
        self._predict = _averaged(self._predict, size.predict, price.predict_seconds)

    def _begin(self, served: ServedModel) -> None:
        steps = served.defaults.steps
        for example in worked_examples(served):
            characters = example.count * example.tokens * CHARACTERS_PER_TOKEN
            if example.what == "adapt":
                self._adapt = self._adapt or example.seconds / (characters * (1 + STEP_FACTOR * steps))
            else:
                self._predict = self._predict or example.seconds / (characters * max(1, example.samples or 0))
        self._adapt, self._predict = self._adapt or 0.0, self._predict or 0.0


def _averaged(before: float | None, size: float, seconds: float) -> float | None:
    if not size or not seconds or before is None:
        return before
    return before + WEIGHT * (seconds / size - before)
